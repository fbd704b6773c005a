"""Do the tests notice when a contract is wrong? Change it in one place at a time, and see.

    python -m tests.mutation [CONTRACT] [--module streams] [--hand] [--limit 100] [--seed 1] [--workers 2] [--list]
        [--only streams-041] [--results FILE]

Each mutant is the contract with one operator, constant, statement or pair of arguments changed in one of its
sources; `by_hand.txt` has those that somebody thought of. It is compiled by Vyper directly and put in the place of
the contract's bytecode in the tests that cover it, unit tests first, which stop at the first failure: the mutant is
killed. Mutants that do not compile, or compile to the same bytecode, do not count. What survives is either in
`equivalent.txt`, with the reason why no test can tell it from the original, or shows a gap in the tests, and the run
fails.

Mutants are tried in processes forked from one that has everything loaded, each on a node of its own; the tests
that killed the last mutants of the same module run first. Files are never touched.
"""
