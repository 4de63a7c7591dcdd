"""Healing a merged model: LoRA (peft), distillation.

- distillation: training towards the original model's own output
- layers: which layers get adapters
- lora: training LoRA adapters and folding them in (peft)
- rows: a recovery text as sequences of token ids with labels
- trainer: transformers' Trainer for a recovery: its settings, its checkpoints, and how it is stopped
- training_speed: how fast a recovery trains, and how long it will still take
"""
