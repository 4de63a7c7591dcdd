"""Healing a merged model: LoRA (peft), training of some layers' weights, distillation.

- distillation: training towards the original model's output
- lora: trains LoRA adapters or weights and folds them in (peft)
- own_answers: recovery examples whose answers the original model writes
- quantized: frozen weights in four bits (QLoRA)
- rows: a recovery text as sequences of token ids with labels
- trainer: transformers' Trainer for a recovery: settings, checkpoints, stopping
"""
