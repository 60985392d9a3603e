"""The two Triton backends. Inside Triton each folder stands alone; pairs.py and engine.py also run in process."""
