"""From a name to a model and back to a folder; running its layers one by one.

- decoder: a model's layers, found by structure; its parameter count and size
- from_gguf: what transformers leaves out when it reads a GGUF file
- gradients: gradients of a model's loss on text, for importance scores
- hooks: hooks on modules, removed when a block ends
- known: the bundled models, and the families that tests cover
- layer_facts: what a config says about individual layers, and how to rewrite it when some are removed
- layer_pattern: the families in which llama.cpp takes a layer's kind from its place
- layer_parts: the two parts of a layer, by the names of their weights
- layer_outputs: the output of every layer in one forward pass, through hooks
- load: loads models and tokenizers; facts about a model before it is loaded
- locate: from a name to a local folder with safetensors and a checked config
- offload: models larger than one device (accelerate)
- one_layer: one layer in memory, of a model that may be on disk, with other weights in its place
- processes: several processes working on one stage: shares, sums, who writes
- replay: records each layer's call, then re-runs any part of the model
- save: saves a model as a folder that plain transformers loads, and checks it by reloading
- trial: a model of the same build with made-up weights, to see what its code can do
- uploads: model files that came through the browser
"""
