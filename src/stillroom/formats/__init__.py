"""A Hugging Face folder to files that devices run: GGUF and ONNX."""
