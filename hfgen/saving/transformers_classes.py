"""Text encoders and tokenizers of transformers that a saved pipeline may name."""

TEXT_ENCODERS = (
    "BertModel",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "DistilBertModel",
    "LlamaForCausalLM",
    "LlamaModel",
    "RobertaModel",
    "SiglipTextModel",
    "T5EncoderModel",
)

TEXT_MODELS = {
    "bert": "BertModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "distilbert": "DistilBertModel",
    "llama": "LlamaModel",
    "roberta": "RobertaModel",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "t5": "T5EncoderModel",
}
"""Kind of a model of transformers, as its configuration names it -> the text encoder in it."""

TOKENIZERS = (
    "BertTokenizer",
    "BertTokenizerFast",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenizersBackend",  # how transformers 5 calls PreTrainedTokenizerFast
)

TRANSFORMERS = (*TEXT_ENCODERS, *TOKENIZERS)
"""Classes of transformers that a saved pipeline may be made of. They run no code of a folder, weights are safetensors,
and a tokenizer is one file, tokenizer.json."""
