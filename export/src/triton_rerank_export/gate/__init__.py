"""Does what will be served give the scores and the order of PyTorch?"""
