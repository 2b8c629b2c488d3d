"""Small text encoders and tokenizers of transformers, made here: nothing is downloaded."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer():
    """CLIP's tokenizer over the alphabet and one merged word."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ca", "cat</w>"]
    merges = [("c", "a"), ("ca", "t</w>")]
    return transformers.CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=6)


def tokenizers():
    """One of each kind of tokenizer, over a few tokens."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4, "dog": 5}
    model = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁cat", -1.0), ("a", -3.0)]
    options = {"model_max_length": 6}
    bert, llama = transformers.BertTokenizer, transformers.LlamaTokenizer
    return {
        "CLIPTokenizer": tokenizer(),
        "BertTokenizer": bert(words, **options),
        "T5Tokenizer": transformers.T5Tokenizer(pieces, extra_ids=2, **options),
        "LlamaTokenizer": llama({"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4}, [], pad_token="</s>"),
        "TokenizersBackend": transformers.PreTrainedTokenizerFast(
            tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", **options
        ),
    }


def text_encoders():
    """One of each text encoder, with one layer of width 8 over 56 tokens, all of whose parameters matter."""
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {
        "vocab_size": 56,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    clip = transformers.CLIPTextConfig(max_position_embeddings=6, projection_dim=8, **sizes, **ids)
    llama = transformers.LlamaConfig(**sizes, **ids, tie_word_embeddings=True)
    t5 = transformers.T5Config(vocab_size=56, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    configs = {
        "CLIPTextModel": clip,
        "CLIPTextModelWithProjection": clip,
        "BertModel": transformers.BertConfig(**sizes, max_position_embeddings=6),
        "T5EncoderModel": t5,
        "DistilBertModel": transformers.DistilBertConfig(
            vocab_size=56, dim=8, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=6
        ),
        "LlamaModel": llama,
        "RobertaModel": transformers.RobertaConfig(**sizes, max_position_embeddings=8, pad_token_id=1),
        "SiglipTextModel": transformers.SiglipTextConfig(max_position_embeddings=6, projection_size=8, **sizes, **ids),
        "LlamaForCausalLM": llama,
    }
    made = {}
    for name, config in configs.items():
        torch.manual_seed(1)
        made[name] = getattr(transformers, name)(config).eval()
        for parameter in made[name].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def text_encoder():
    """CLIP's text encoder, with one layer of width 8."""
    return text_encoders()["CLIPTextModel"]
