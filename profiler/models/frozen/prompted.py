"""Answers of a language model that sees an image: class names by likelihood, and free text.

The prompt of each family is that of its library or publication (LF is a line feed):

    PaliGemma     IMAGE <bos> QUESTION LF                           (transformers' processor)
    SmolVLM       <|im_start|>User:<fake_token_around_image><global-img> IMAGE
                  <fake_token_around_image> QUESTION <end_of_utterance> LF Assistant:
                                                                    (its chat template)
    MobileVLM V2  <s> SYSTEM USER: IMAGE LF QUESTION ASSISTANT:     (conversation ``v1``)

An image is read once, with the prompt, into the cache of keys and values. The likelihood of a class
name is the product of the probabilities of its tokens and of the end of the answer, so that a name
that begins like a longer one has no advantage. Free text is written greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from profiler.models.frozen.decoder_cache import cache_name, repeated_cache
from profiler.models.frozen.run import NAMES_AT_ONCE

if TYPE_CHECKING:
    from torch import nn

    from profiler.models.frozen.catalogue import FrozenModel

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """The text around the image and the question.

    Attributes:
        before: text before the image.
        after: text after the image, with ``{}`` for the question.
        begins: where the token of the beginning stands: ``before`` or ``after``; None without one.
        answer_prefix: text before an answer.
        end: token that ends an answer; None for the tokenizer's own.
        question: question of the default prompt.
    """

    before: str
    after: str
    begins: str | None
    answer_prefix: str = ""
    end: str | None = None
    question: str = "What is the main object in the image? Answer with one name."


PROMPT_FORMS = {
    "paligemma": PromptForm(
        before="",
        after="{}\n",
        begins="after",
        question="answer en What is the main object in the image?",
    ),
    "smolvlm": PromptForm(
        before="<|im_start|>User:<fake_token_around_image><global-img>",
        after="<fake_token_around_image>{}<end_of_utterance>\nAssistant:",
        begins=None,
        answer_prefix=" ",
        end="<end_of_utterance>",
    ),
    "mobilevlm_v2": PromptForm(
        before=f"{_SYSTEM} USER: ", after="\n{} ASSISTANT:", begins="before"
    ),
}
"""Prompt of each family, by the name of its architecture in the catalogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadImage:
    """An image and a prompt that were read.

    Attributes:
        cache: keys and values, for one image.
        log_probabilities: [vocabulary] of the first token of the answer.
    """

    cache: Any
    log_probabilities: Tensor


class PromptedModel:
    """A loaded language model that sees images.

    Args:
        model: its entry in the catalogue.
        built: the model.
        tokenizer: tokenizer of transformers.
        dtype: type of the images.
    """

    def __init__(
        self,
        model: FrozenModel,
        built: nn.Module,
        tokenizer: Any,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.built, self.tokenizer, self.dtype = model, built, tokenizer, dtype
        self.form = PROMPT_FORMS[model.model]
        self._cache_name = cache_name(built)

    @property
    def end_token(self) -> int:
        """Token that ends an answer."""
        if self.form.end is not None:
            found = self.tokenizer.convert_tokens_to_ids(self.form.end)
            if found is not None and found != self.tokenizer.unk_token_id:
                return int(found)
        return int(self.tokenizer.eos_token_id)

    def prompt_tokens(self, question: str, *, image_token: int) -> list[int]:
        """Return the tokens of the prompt, with a placeholder for each token of the image."""
        assert self.model.image_tokens is not None
        begin = [int(self.tokenizer.bos_token_id)] if self.form.begins else []
        before = self._tokens(self.form.before)
        after = self._tokens(self.form.after.replace("{}", question))
        if self.form.begins == "before":
            before = begin + before
        elif self.form.begins == "after":
            after = begin + after
        return before + [image_token] * self.model.image_tokens + after

    def name_tokens(self, name: str) -> list[int]:
        """Return the tokens of a class name as an answer, with the end of the answer."""
        return [*self._tokens(self.form.answer_prefix + name), self.end_token]

    def read(self, image: Tensor, question: str) -> ReadImage:
        """Read an image [1, 3, S, S] and the prompt with a question."""
        from profiler.models.frozen.mobilevlm import IMAGE_TOKEN

        config: Any = self.built.config
        image_token = int(getattr(config, "image_token_id", IMAGE_TOKEN))
        tokens = torch.tensor(
            [self.prompt_tokens(question, image_token=image_token)], device=image.device
        )
        inputs: dict[str, Any] = {"input_ids": tokens, "pixel_values": image}
        if self.model.model == "paligemma":
            inputs["token_type_ids"] = torch.zeros_like(tokens)  # each sees the whole prompt
        elif self.model.model == "smolvlm":
            inputs["pixel_values"] = image[:, None]  # one tile
        with torch.no_grad():
            found = self.built(**inputs, use_cache=True, logits_to_keep=1)
        first: Tensor = found.logits[0, -1].float().log_softmax(dim=-1)
        return ReadImage(cache=getattr(found, self._cache_name), log_probabilities=first)

    def likelihoods(self, read: ReadImage, names: Sequence[Sequence[int]]) -> Tensor:
        """Return [names] log-likelihoods of answers, each given by its tokens."""
        return torch.cat(
            [
                self._likelihoods_at_once(read, names[first : first + NAMES_AT_ONCE])
                for first in range(0, len(names), NAMES_AT_ONCE)
            ]
        )

    def _likelihoods_at_once(self, read: ReadImage, names: Sequence[Sequence[int]]) -> Tensor:
        device = read.log_probabilities.device
        longest = max(len(name) for name in names)
        # after the end of a name, any token will do: its probability is not counted
        padded = torch.tensor([[*n, *[n[-1]] * (longest - len(n))] for n in names], device=device)
        counted = torch.arange(longest, device=device) < torch.tensor(
            [[len(name)] for name in names], device=device
        )
        first = read.log_probabilities[padded[:, :1]]
        if longest == 1:
            return first.squeeze(1)
        options = {self._cache_name: repeated_cache(read.cache, len(names))}
        with torch.no_grad():
            found = self.built(input_ids=padded[:, :-1], use_cache=True, **options)
        following = found.logits.float().log_softmax(dim=-1)
        rest = following.gather(2, padded[:, 1:, None]).squeeze(2)
        return torch.where(counted, torch.cat([first, rest], dim=1), 0.0).sum(dim=1)

    def write(self, read: ReadImage, *, most_tokens: int) -> list[int]:
        """Return the tokens of the greedy answer; the cache of the image is used up."""
        tokens: list[int] = []
        cache, best = read.cache, int(read.log_probabilities.argmax())
        while best != self.end_token and len(tokens) < most_tokens:
            tokens.append(best)
            if len(tokens) == most_tokens:
                break
            step = torch.tensor([[best]], device=read.log_probabilities.device)
            with torch.no_grad():
                found = self.built(
                    input_ids=step, use_cache=True, logits_to_keep=1, **{self._cache_name: cache}
                )
            cache = getattr(found, self._cache_name)
            best = int(found.logits[0, -1].argmax())
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _tokens(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
