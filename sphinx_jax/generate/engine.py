"""One engine for everything that answers: requests in, texts out, many at once."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from reprlib import repr as short
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from sphinx_jax.config import ModelConfig
from sphinx_jax.data.answer_grammar import LONGEST, of_task
from sphinx_jax.data.conversation import STOP
from sphinx_jax.data.image import ImageSource
from sphinx_jax.data.read_ahead import read_ahead
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import arguments
from sphinx_jax.generate.batching.batch import Batch
from sphinx_jax.generate.batching.guide import Guides
from sphinx_jax.generate.batching.guided import Guided
from sphinx_jax.generate.batching.jobs import Job
from sphinx_jax.generate.batching.pictures import Detail, Picture, Pictures
from sphinx_jax.generate.batching.sizes import Sizes
from sphinx_jax.generate.batching.stops import Stops
from sphinx_jax.generate.batching.warming import keep_programs, warm_up
from sphinx_jax.generate.once import made_once
from sphinx_jax.generate.request import Request, Said, check_request
from sphinx_jax.model.blueprint import Leaves
from sphinx_jax.progress import progress

SLOTS = 16
PICTURES = 2
QUEUE = 4096  # requests that may wait
AHEAD = 4  # requests for each slot that are taken of many

_log = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """More requests wait than the engine takes; try again when some have been answered."""


class Model(Protocol):
    """What an engine needs of a model: `Sphinx` has it."""

    config: ModelConfig
    leaves: Leaves
    mesh: Mesh

    @property
    def tokenizer(self) -> Tokenizer: ...


class Answer:
    """What becomes of a request.

    Iterating yields the text so far, in whole characters, whenever there is more of it (with n > 1 a list of texts).
    An answer whose loop is left early, or that nobody holds any more, is cancelled.
    """

    def __init__(self, engine: Engine, jobs: list[Job], single: bool):
        self._engine, self.jobs, self._single = engine, jobs, single

    def cancel(self) -> None:
        """Say no more; what was said stays."""
        for job in self.jobs:
            job.cancelled = True

    def __del__(self):
        self.cancel()

    @property
    def done(self) -> bool:
        return all(job.done for job in self.jobs)

    def __iter__(self) -> Iterator[str | list[str]]:
        before = [""] * len(self.jobs)
        for said in self.so_far():
            texts = [each.text for each in said]
            if texts != before or not any(texts):  # an answer may be empty
                before = texts
                yield texts[0] if self._single else list(texts)

    def so_far(self) -> Iterator[list[Said]]:
        """All n answers whenever there is more text of one, and at the end, `ended` being "" of those that go on.

        Their tokens may be ahead of their texts, by what may be the beginning of a stop text or of a character.
        """
        for job in self.jobs:
            job.streamed = True
        before = [""] * len(self.jobs)
        try:
            while True:
                done = [job.done for job in self.jobs]  # before the tokens: another thread may add to them
                said = [_said(job, whole) for job, whole in zip(self.jobs, done, strict=True)]
                self._raise()
                texts = [each.text for each in said]
                if texts != before or all(done):
                    before = texts
                    yield said
                if all(done):
                    return
                self._engine.advance(self.jobs)
        finally:
            self.cancel()

    def wait(self) -> list[Said]:
        """All n answers, whole."""
        while not self.done:
            self._engine.advance(self.jobs)
        self._raise()
        return [_said(job, True) for job in self.jobs]

    def _raise(self) -> None:
        for job in self.jobs:
            if job.error is not None:
                raise job.error


def _said(job: Job, whole: bool) -> Said:
    said = list(job.said)
    tokens = [token for token, _ in said]
    ended = job.ended if whole else ""
    return Said(job.stops.text(tokens, whole), tokens, [chance for _, chance in said], ended, dict(job.others))


class Engine:
    """Answers requests, as many at a time as there are slots.

    In float32 an answer is the same whatever else is being answered. In bfloat16 batches of other sizes round sums
    differently: of the likeliest tokens it is the same up to near ties, while one that is drawn may be another.

    Nothing runs by itself: whoever waits for an answer takes a step of all, so threads may share an engine.

    Args:
      model: as `from_pretrained` gives it.
      slots: answers that are continued together, at most; as many again of those with a grammar, which have a cache of
        their own.
      queue: requests that may wait beside them.
      pictures: as many at least have their keys and values kept for more questions; as many again for answers
        with a grammar, copied from those where they are there.
    """

    def __init__(self, model: Model, slots: int = SLOTS, queue: int = QUEUE, pictures: int = PICTURES):
        if not isinstance(getattr(model, "config", None), ModelConfig):
            raise arguments.BadArgument(f"model must be as from_pretrained gives it, not {short(model)}")
        for name, count in (("slots", slots), ("queue", queue), ("pictures", pictures)):
            if not isinstance(count, int) or count < 1:
                raise arguments.BadArgument(f"{name} must be an integer of at least 1, not {count!r}")
        self.config, self.mesh, self.tokenizer = model.config, model.mesh, model.tokenizer
        self.slots, self.queue = slots, queue
        self.stops = Stops(self.tokenizer, [STOP])
        self.pictures = Pictures(model.config, model.leaves)
        sizes = Sizes.of(slots, model.config.decoder.max_positions, pictures)
        made_of = model.config, model.leaves, self.pictures, self.stops, model.mesh, sizes
        self._batch, self._guided = self._batches = Batch(*made_of), Guided(*made_of)
        self._batch.neighbour, self._guided.neighbour = weakref.ref(self._guided), weakref.ref(self._batch)
        self._lock = threading.Lock()  # of those who take steps
        self._door = threading.Lock()  # of those who bring requests

    def submit(self, request: Request) -> Answer:
        """Take a request; what cannot be used is refused here.

        Raises:
          BadArgument, BadImage: in one line.
          QueueFull: too many wait.
        """
        check_request(request)
        if request.n > self.queue:
            raise arguments.BadArgument(f"n {request.n} is more than the {self.queue} that the engine's queue holds")
        self._check_room(request.n)  # what is full is told before pictures are read
        jobs = self._jobs(request)
        with self._door:
            self._check_room(request.n)
            (self._guided if request.grammar else self._batch).waiting.extend(jobs)
        return Answer(self, jobs, request.n == 1)

    def _check_room(self, more: int) -> None:
        waiting = [job for batch in self._batches for job in list(batch.waiting)]
        if sum(not job.cancelled for job in waiting) + more > self.queue:
            raise QueueFull(f"{self.queue} requests wait already; try again later, or give the engine a longer queue=")

    def map(self, requests: Iterable[Request]) -> Iterator[list[Said]]:
        """Answers in the order of the requests."""
        early: dict[int, list[Said]] = {}
        number = 0
        for done, said in self.as_completed(requests):
            early[done] = said
            while number in early:
                yield early.pop(number)
                number += 1

    def as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Said]]]:
        """Numbers of requests, from 0, and their answers, each as soon as it is whole.

        No more requests are taken at a time than keep the slots busy. Their pictures are read by threads, some requests
        ahead.
        """
        numbered, taken = enumerate(self._with_pictures(requests)), dict[int, Answer]()
        following = next(numbered, None)
        while following or taken:
            jobs = sum(len(answer.jobs) for answer in taken.values())
            # a picture that takes long to read holds up nobody else
            while following and (not taken or self._is_read(following[1])):
                number, request = following[0], following[1].result()
                if taken and jobs + request.n > min(AHEAD * self.slots, self.queue):
                    break
                try:
                    taken[number] = self.submit(request)
                except QueueFull:  # of others' requests
                    if not taken:
                        raise
                    break
                jobs, following = jobs + request.n, next(numbered, None)
            done = [number for number, answer in taken.items() if answer.done]
            yield from ((number, taken.pop(number).wait()) for number in done)
            if not done:
                self.advance([job for answer in taken.values() for job in answer.jobs])

    def score(
        self,
        texts: Sequence[Sequence[int]],
        begins: Sequence[int],
        images: Iterable[ImageSource | Picture | None],
        detail: Detail = "high",
    ) -> list[list[float]]:
        """Log-probabilities of the tokens of each text (BOS first) from number `begin` on, after all before them.

        No more are taken at a time than keep the slots busy; files of pictures are read by threads, some ahead.

        Raises:
          BadArgument: a text takes more positions than there are, or nothing of it would be judged.
        """
        shown_with = list(itertools.islice(images, len(texts)))  # which may be as many as one likes
        arguments.check_equally_many(texts=texts, begins=begins, images=shown_with)
        asked, room = list(zip(texts, begins, shown_with, strict=True)), self.config.decoder.max_positions
        for number, (text, begin, image) in enumerate(asked):
            if not 0 < begin < len(text):
                raise arguments.BadArgument(
                    f"begins[{number}] must be from 1 to {len(text) - 1}, before the end of its text, not {begin}"
                )
            if image is not None:
                arguments.check_vision(self.config)
            taken = len(text) + (self.config.image_positions if image is not None else 0)
            if taken > room:
                raise arguments.BadArgument(f"prompt {number} and its continuation take {taken} positions of {room}")
        shown = read_ahead(lambda one: self._picture(one[2], detail), asked, lambda one: in_file(one[2]))
        going, judged = dict[int, Job](), dict[int, list[float]]()
        numbered = enumerate(zip(asked, shown, strict=True))
        following = next(numbered, None)
        try:
            while following or going:
                while following and len(going) < AHEAD * self.slots and (not going or self._is_read(following[1][1])):
                    number, ((text, begin, _), picture) = following
                    going[number] = Job(list(text), 0, self.stops, picture=picture.result(), judged_from=begin)
                    self._batch.waiting.append(going[number])
                    following = next(numbered, None)
                self.advance(list(going.values()))
                for number in [number for number, job in going.items() if job.done]:
                    job = going.pop(number)
                    if job.error is not None:
                        raise job.error
                    judged[number] = job.judged
        finally:
            for job in going.values():
                job.cancelled = True
        return [judged[number] for number in range(len(asked))]

    def _is_read(self, picture: Future[Any]) -> bool:
        """Whether it is taken now; of a mesh that processes share each has to take it at the same step, and waits."""
        return picture.done() or self.mesh.is_multi_process

    def _with_pictures(self, requests: Iterable[Request]) -> Iterator[Future[Request]]:
        """The same, their pictures read by threads."""

        def read(request: Request) -> Request:
            check_request(request)
            return dataclasses.replace(request, image=self._picture(request.image, request.detail))

        def by_threads(request: Request) -> bool:
            return isinstance(request, Request) and in_file(request.image)

        return read_ahead(read, requests, by_threads)

    @made_once
    def _guides(self) -> Guides:
        return Guides(self.stops)

    def warm_up(self, quiet: bool = False, grammars: bool = False) -> None:
        """Compile all programs before the first request: no request waits for a compilation then.

        A second process finds them in JAX's compilation cache; where none is set, in this user's cache folder.

        Args:
          grammars: also those of answers that keep to one.
        """
        keep_programs()
        with self._lock, jax.set_mesh(self.mesh), progress(desc="compiling", unit=" programs", disable=quiet) as bar:
            for batch in self._batches if grammars else [self._batch]:
                for name in warm_up(batch):
                    bar.set_postfix_str(name)
                    bar.update()

    def advance(self, jobs: Sequence[Job]) -> None:
        """Take a step, unless one of these jobs went on while another thread took one."""
        before = [(len(job.said), job.done) for job in jobs]
        with self._lock:
            if before == [(len(job.said), job.done) for job in jobs]:
                for batch in self._batches:
                    batch.step()

    def _picture(self, image: ImageSource | Picture | None, detail: Detail) -> Picture | None:
        if image is None:
            return None
        arguments.check_vision(self.config)
        picture = self.pictures.named(image) if isinstance(image, Picture) else self.pictures.picture(image)
        return self.pictures.in_detail(picture, detail)

    def _jobs(self, r: Request) -> list[Job]:
        if r.image is not None:
            arguments.check_vision(self.config)
        prompt = self.fitted(r.prompt, r.image is not None, r.max_new_tokens)
        if r.max_new_tokens < (most := self.most_tokens(r.task)):
            raise arguments.BadArgument(
                f"max_new_tokens {r.max_new_tokens} may cut off an answer of task {r.task!r}; give {most} or more"
            )
        stops = self.stops.and_texts(r.stop) if r.stop else self.stops
        rule = r.temperature, r.top_p, min(r.top_k, self.config.decoder.vocab_size)
        picture = self._picture(r.image, r.detail)
        jobs = [Job(list(prompt), r.max_new_tokens, stops, rule, r.seed + i, picture) for i in range(r.n)]
        for job in jobs if r.grammar else ():
            job.guide = self._guides.guide(r.grammar)
            job.force()
        return jobs

    def most_tokens(self, task: str) -> int:
        """As many as an answer of a task may take that has to come whole; 0 for any other."""
        return self._guides.most_tokens(of_task(task), LONGEST[task]) if task in LONGEST else 0

    def fitted(self, prompt: str, with_picture: bool, new_tokens: int) -> list[int]:
        """The tokens of a prompt, cut at its beginning where they leave no room for an answer."""
        room = self.room(with_picture, new_tokens)
        tokens = self.tokenizer.encode(prompt, bos=True)
        if len(tokens) <= room:
            return tokens
        _log.warning("a prompt of %d tokens was cut to its last %d", len(tokens), room - 1)
        return [*tokens[:1], *tokens[1 - room :]]

    def room(self, with_picture: bool, new_tokens: int) -> int:
        """The most tokens of a prompt that are read beside an answer.

        Raises:
          BadArgument: there is no room for a prompt.
        """
        positions = self.config.decoder.max_positions - (self.config.image_positions if with_picture else 0)
        room = positions - new_tokens
        if room < 2:
            beside = " beside the picture" if with_picture else ""
            raise arguments.BadArgument(
                f"max_new_tokens {new_tokens} leaves no room for a prompt in {positions} positions{beside}"
            )
        return room


def in_file(image: Any) -> bool:
    """Whether a picture may be read by another thread than this."""
    # what is in memory already may be in several requests, and PIL reads it when it is first looked at
    return isinstance(image, str | bytes | os.PathLike)
