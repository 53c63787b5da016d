"""The reproduction ledger: the paper's tables, the runs that measure them, and how they compare."""
