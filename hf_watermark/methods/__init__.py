"""One folder per method; every folder holds `config.py`, `trainer.py` and `verifier.py`."""
