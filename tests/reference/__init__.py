"""The method in its plainest form, the truth that the engine's tests compare with. Nothing of the engine but swm.plan.

families.py   tiny models with random weights, one per architecture
merging.py    every merge rule on a copy of the whole model
search.py     the sliding-window walk; every candidate is a whole model, run from its tokens
cka.py        similarity of two layers' outputs: CKA in three forms, cosine, angle, block influence
planners.py   the other ways of choosing layers to drop, by brute force
scoring.py    perplexity, log-likelihoods of answers, accuracy, paired comparison
lora.py       a LoRA adapter folded into the weights by hand
test_reference.py   all of this against pencil and paper, published values and second formulas
"""
