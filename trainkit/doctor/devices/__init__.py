"""GPUs and the way between ranks. Only programs in here import torch, in processes of their own."""
