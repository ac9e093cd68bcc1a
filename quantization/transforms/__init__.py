"""Changes of a model that leave what it computes as it was, and make it lose less when it is quantized."""
