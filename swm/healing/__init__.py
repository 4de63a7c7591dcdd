"""Healing a merged model: LoRA (peft), distillation.

- distillation: training towards the original model's output
- layers: which layers get adapters
- lora: trains LoRA adapters and folds them in (peft)
- quantized: frozen weights in four bits (QLoRA)
- rows: a recovery text as sequences of token ids with labels
- trainer: transformers' Trainer for a recovery: settings, checkpoints, stopping
- training_speed: how fast a recovery trains, and the time left
"""
