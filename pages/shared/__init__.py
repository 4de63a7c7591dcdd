"""What several pages share, or what would make a page too long: frame, forms, tables, the drawing of layers."""
