"""Sliding-Window Merging: see which layers of a language model are redundant, merge them, heal and compare.

What a notebook or a script uses is here by name and loaded when it is used: `import swm` loads no torch. The stages of
an experiment are plain functions in `swm.stages`; `python -m swm` runs each of them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "llama_cpp.write": ["export_gguf"],
        "merging.apply": ["apply_plan"],
        "models.load": ["load_model", "save_model"],
        "planners.plan_with": ["plan_with"],
        "plan": ["MergePlan", "Window"],
        "search.find": ["find_plan", "threshold_path"],
        "search.threshold_path": ["ThresholdPath"],
        "search.window_score": ["WindowScorer"],
        "similarity.layers": ["layer_similarity"],
        "texts.calibration": ["calibration_tokens"],
    },
)
