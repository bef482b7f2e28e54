"""A network in whole numbers of 8 bits, made and run by onnxruntime."""
