"""Models for llama.cpp: GGUF files, written from a Hugging Face folder or from another GGUF file, and the real client.

- families: which families and configs llama.cpp can run
- config_keys: how it describes their configs
- tensors: how each family's weights are named and laid out there
- vocabulary: the tokenizer, as llama.cpp stores it
- pre_tokenizers: the names of the ways to split text before byte-pair encoding
- kinds: the number formats that can be written, and which tensor gets which
- write: a Hugging Face folder to a GGUF file, tensor by tensor
- attention_free: layers without attention, in llama.cpp's architecture `deci`
- source: blocks copied from the GGUF file that the model came from
- client: llama.cpp itself, through the npm package node-llama-cpp
"""
