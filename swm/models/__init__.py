"""From a name to a model and back to a folder; running its layers one by one.

- decoder: what is inside a model: its layers by structure, its size
- gradients: gradient of a model's loss on text, for importances that need it
- hooks: hooks on a model's modules for the length of a block
- layer_facts: what a config says of single layers, and what it has to say once some of them are gone
- layer_outputs: the output of every layer in one forward pass, by hooks
- load: loads models and tokenizers; what is known of a model before it is loaded
- locate: from a name to a local folder with safetensors and a checked config
- offload: models larger than one device (accelerate)
- processes: several processes of one stage: shares, sums, who writes
- replay: records how each layer was called, then runs any part of the model again
- save: saves a model as a folder that plain transformers loads, checked by reloading
"""
