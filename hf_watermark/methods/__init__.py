"""One folder per method; every folder holds `config.py`, `facts.py`, `trainer.py` and `verifier.py`."""
