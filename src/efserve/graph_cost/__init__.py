"""Operations and bytes of one batch, counted from an ONNX graph; runs nothing. `count.py` is the way in."""
