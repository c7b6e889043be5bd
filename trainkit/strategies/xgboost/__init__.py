"""XGBoost's collective: the communicator set up explicitly, and its traps held shut."""
