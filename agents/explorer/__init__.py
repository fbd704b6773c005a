"""The explorer: what the market did and does, for people and programs to look at.

    penstock explorer            index the chain, serve the pages and the API
    penstock explorer check      recompute every balance from events and compare it with the chain
    penstock top                 the same in a terminal

One store stands in the middle. The indexer writes it: every event of Penstock's contracts, and tables folded from
them. API, pages and terminal view only read it. Beside the chain it keeps what consumers publish and who is up.

    _decode   logs to events                _check     store against chain
    _feed     ranges of blocks from a node  _queries   what the views ask
    _schema   the tables                    _api       JSON over HTTP
    _store    SQLite or PostgreSQL          _pages     HTML over HTTP
    _fold     events to derived rows        _live      what is new, as it comes
    _indexer  follows the chain             _top       the terminal view
    _receipts published by consumers        _probe     are providers up
"""
