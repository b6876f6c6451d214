"""Load and truth tests from outside: vendors report, customers watch, and what was stored is compared."""
