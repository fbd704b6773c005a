"""`penstock skill`: write, check, publish, find, buy, run and judge skills."""
