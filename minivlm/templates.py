"""Chat templates: the marks around what each speaker says, as data.

A model that has learned one template answers well in that one only. conversation.render
appends these marks and the texts between them piece by piece.

    minivlm  <|user|> question<|assistant|> answer<|end|>
    chatml   <|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\nanswer<|im_end|>\n
    llama3   <|start_header_id|>user<|end_header_id|>\n\nquestion<|eot_id|>...
    vicuna   <s> A chat ... USER: question ASSISTANT: answer</s> USER: ...

Source: the tokenizer_config.json of Qwen2.5 and SmolLM2, and of Llama 3;
haotian-liu/LLaVA, llava/conversation.py (conv_vicuna_v1).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """What stands before and behind the text of each role; special tokens by their names.

    `end` is a part of the answer and learned. What stands behind an answer comes after it,
    and is not learned.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str]
    end: str  # the token that ends an answer
    stop: str  # the token that ends a document
    begin: str = ""  # before everything
    default_system: str = ""  # what the system says if nobody wrote it
    spaced: bool = False  # every text begins with a space of its own
    keeps_space: bool = False  # white space at the ends of a text becomes tokens, too

    @property
    def marks(self) -> tuple[str, ...]:
        """All pieces of the template."""
        return (self.begin, *self.system, *self.user, *self.assistant, self.end, self.stop)


TEMPLATES = {
    # one space before every text, so that a word has the same id wherever it stands
    "minivlm": Template(
        user=("<|user|>", ""), assistant=("<|assistant|>", ""), system=("<|system|>", ""),
        end="<|end|>", stop="<|endoftext|>", spaced=True,
    ),
    "chatml": Template(
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "\n"),
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        end="<|im_end|>", stop="<|endoftext|>",
    ),
    "llama3": Template(
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        end="<|eot_id|>", stop="<|end_of_text|>", begin="<|begin_of_text|>",
    ),
    "vicuna": Template(
        # SentencePiece puts each space at the word behind it, so the pieces are cut there
        user=(" USER:", ""), assistant=(" ASSISTANT:", ""), system=("", ""),
        end="</s>", stop="</s>", begin="<s>", spaced=True,
        keeps_space=True,
        default_system="A chat between a curious human and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the "
        "human's questions.",
    ),
}
