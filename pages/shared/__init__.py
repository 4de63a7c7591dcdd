"""What several pages share: their frame, the healing form, the drawing of layers, tables."""
