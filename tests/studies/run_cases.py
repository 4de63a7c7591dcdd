"""What several tests of studies start from."""

SMALL = {
    "ratios": [0.25, 0.5],
    "planners": ["sleb", "random"],
    "rules": ["keep_first"],
    "tasks": "none",
    "limit": 3,
    "heal": ["sleb"],
    "recovery": {"preset": "quick", "steps": 2, "batch": 2, "length": 16, "held_out": 2, "repair": "none"},
    "time": False,
    "keep_models": False,
}
