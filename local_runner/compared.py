"""What a model folder's tokenizer, template and stop tokens have that the catalogue's entry has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from local_runner.data import ChatTokenizer
from local_runner.models import tokenizers
from local_runner.models.base import Base
from local_runner.templates import compile_template
from maas_client.spec.catalog import template_text, token_facts
from maas_client.spec.catalog_entry import ModelEntry, TokenFacts

_SYSTEM = {"role": "system", "content": "Be brief."}
_USER, _SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
_PROBES: Mapping[str, tuple[Sequence[Mapping[str, str]], bool]] = {
    "a question and its answer": ((_USER, _SAID), False),
    "two questions": ((_USER, _SAID, _USER, _SAID), False),
    "a question that waits for its answer": ((_USER,), True),
    "a system turn": ((_SYSTEM, _USER, _SAID), False),
}
"""Conversations that show what a template does; the flag is whether the assistant is to speak."""


def remarks(base: Base, tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """What is to be said of a base's tokenizer; nothing of a stand-in, which is another model."""
    if base.info.stand_in:
        return ()
    return differences(tokenizer, base.folder, model=base.model)


def differences(tokenizer: ChatTokenizer, folder: Path, *, model: str) -> tuple[str, ...]:
    """What is used of the folder that the catalogue says otherwise, each in a sentence.

    Args:
        tokenizer: the folder's.
        folder: the model's own.
        model: the job's model.
    """
    entry = tokenizers.identify(folder, model)
    if entry is None:
        return (
            "By its config.json it is no model of the catalogue: its own tokenizer, template and stop "
            "tokens are used, and compared with nothing.",
        )
    facts = token_facts(entry)
    return tuple(
        f"{words} What the folder says is used."
        for words in (
            *_tokens(tokenizer, facts),
            *_white_space(tokenizer, facts),
            *_roles(tokenizer, facts),
            *_vocabulary(tokenizer, folder),
            *_stops(tokenizer, folder, entry),
            *_template(tokenizer, entry),
        )
    )


def _tokens(tokenizer: ChatTokenizer, facts: TokenFacts) -> Iterator[str]:
    other = {
        token: found
        for token, number in facts.tokens.items()
        if (found := tokenizer.raw.token_to_id(token)) != number
    }
    if other:
        words = _listed(
            f"{token} is {'no token' if found is None else found}, not {facts.tokens[token]}"
            for token, found in other.items()
        )
        yield f"Special tokens differ from {_name(facts, 'tokens')}: {words}."


def _white_space(tokenizer: ChatTokenizer, facts: TokenFacts) -> Iterator[str]:
    added = {token.content: token for token in tokenizer.raw.get_added_tokens_decoder().values()}
    for side, key, words in (
        ("lstrip", "strip_left", "before"),
        ("rstrip", "strip_right", "behind"),
    ):
        wrong = [
            token
            for token in facts.tokens
            if token in added and getattr(added[token], side) != (token in getattr(facts, key))
        ]
        if wrong:
            takes = [token for token in wrong if getattr(added[token], side)]
            leaves = [token for token in wrong if token not in takes]
            said = "; ".join(
                f"{_listed(iter(tokens))} {verb} it"
                for tokens, verb in ((takes, "take"), (leaves, "leave"))
                if tokens
            )
            yield f"White space {words} special tokens differs from {_name(facts, key)}: {said}."


def _roles(tokenizer: ChatTokenizer, facts: TokenFacts) -> Iterator[str]:
    if tokenizer.eos != facts.eos:
        yield f"The end of a text is {tokenizer.eos}, not {facts.eos} as in {_name(facts, 'eos')}."


def _vocabulary(tokenizer: ChatTokenizer, folder: Path) -> Iterator[str]:
    rows = tokenizers.read_settings(folder / "config.json").get("vocab_size")
    highest = max(tokenizer.raw.get_vocab(with_added_tokens=True).values(), default=-1)
    if isinstance(rows, int) and highest >= rows:
        yield f"The tokenizer has ids up to {highest}, and the model's embedding {rows:,} rows."


def _stops(tokenizer: ChatTokenizer, folder: Path, entry: ModelEntry) -> Iterator[str]:
    own = tokenizers.own_stops(folder)
    ids = {token: tokenizer.raw.token_to_id(token) for token in entry.stop_tokens}
    missing = [token for token, number in ids.items() if own and number not in own]
    more = sorted(own - {number for number in ids.values() if number is not None})
    if missing:
        yield f"Answers do not stop at {_listed(iter(missing))}, as {_of(entry, 'stop_tokens')} does."
    if own and more:
        named = (tokenizer.raw.id_to_token(number) or str(number) for number in more)
        yield f"Answers stop at {_listed(named)}, too, and {_of(entry, 'stop_tokens')} does not."


def _template(tokenizer: ChatTokenizer, entry: ModelEntry) -> Iterator[str]:
    catalogues = compile_template(template_text(entry))
    settings = tokenizer.special
    for what, (messages, answer) in _PROBES.items():
        expected = catalogues.render(messages=messages, add_generation_prompt=answer, **settings)
        try:
            own = tokenizer.template.render(messages, answer=answer)
        except Exception as error:  # noqa: BLE001 - a template raises what it likes
            yield f"The chat template refuses {what} ({error}); {_of(entry, 'template')} does not."
            return
        if own != expected:
            yield (
                f"The chat template writes {what} as {own!r}; {_of(entry, 'template')} writes "
                f"{expected!r}."
            )
            return


def _name(facts: TokenFacts, key: str) -> str:
    sure = "" if key not in facts.unverified else ", which is not confirmed"
    return f"the catalogue's {facts.name}{sure}"


def _of(entry: ModelEntry, key: str) -> str:
    sure = "" if key not in entry.unverified else " (not confirmed)"
    return f"the catalogue's {entry.name}{sure}"


def _listed(words: Iterator[str]) -> str:
    named = list(words)
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return ", ".join(named[:5]) + more
