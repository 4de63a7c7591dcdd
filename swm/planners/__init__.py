"""Methods that choose which layers go: one file for each, all asked by `plan_with`.

A method that drops layers gives windows whose first layer stays as it is; merging, healing and evaluating come after
and are the same for all.

- best: beam search over dropped layers, each merged layer fitted on text; ours
- sleb: SLEB; shortgpt: ShortGPT; laco: LaCo; angular: the deeper layers
- perplexity, taylor: Shortened LLaMA
- chance: layers dropped by chance
- request: what each is asked
- plan_with: a plan by any of them
- drops: from dropped layers to a plan, and the searches over sets of layers
"""
