"""A shop of the module's own."""

from collections.abc import Callable

import pytest

from tests.contracts.shop import Shop, open_shop
from tests.fastchain import Chain, Contract


@pytest.fixture(scope="module")
def shop(evm_of_module: Chain, deploy: Callable[..., Contract], pay: Contract) -> Shop:
    return open_shop(evm_of_module, deploy, pay)
