"""What several tests of reporting start from."""

EVIL = "<script>alert(1)</script>"
