"""Methods that choose which layers to remove: one file each, all called through `plan_with`.

A method that drops layers gives windows whose first layer stays unchanged. Merging, healing and evaluation come later
and do not depend on the method.

- best: beam search over dropped layers, each merged layer fitted on text; our own method
- sleb: SLEB; shortgpt: ShortGPT; laco: LaCo; angular: The Unreasonable Ineffectiveness of the Deeper Layers
- perplexity, taylor: Shortened LLaMA
- chance: random layers, as a baseline
- request: the input of every planner
- plan_with: runs any of them
- needed: layers of which some must stay, tried out
- drops: searches over sets of layers to drop, and the losses that they compare
"""
