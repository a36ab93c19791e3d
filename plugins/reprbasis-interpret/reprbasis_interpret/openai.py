"""Judge `openai`: a server that speaks the OpenAI chat interface (many do, also on this machine). Standard library only.

Answers are asked at temperature 0 and cached under the hash of model, question and length, so that nothing is paid for twice.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import torch

from reprbasis.errors import ReprBasisError, UserError
from reprbasis.interfaces.judge import Explanation, Judge

from . import questions
from .config import OpenAIConfig

PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Status codes after which a call is tried again."""
WORDS, ONE = 60, 5
"""Tokens of an explanation and of a yes or no."""


class OpenAI(Judge[OpenAIConfig]):
    """See the module."""

    def __init__(self, config):
        super().__init__(config)
        self._known, self._calls, self._lock = {}, 0, Lock()

    def explain(self, shown, contrast=(), *, model):
        """The first line of the answer."""
        return Explanation(questions.phrase(self._answer(questions.explain(shown, contrast), WORDS)))

    def match(self, explanation, passages, *, model):
        """1 for an answer that begins with yes, 0 for no, 0.5 for anything else."""
        with ThreadPoolExecutor(self.config.parallel) as pool:
            answers = list(pool.map(lambda p: self._answer(questions.ask(p, explanation.text), ONE), passages))
        return torch.tensor([questions.verdict(a) for a in answers])

    def _answer(self, question, most):
        """The answer to a question, from memory, from the cache, or from the server."""
        key = hashlib.sha256(json.dumps([self.config.url, self.config.model, question, most]).encode()).hexdigest()
        kept = None if self.config.cache is None else Path(self.config.cache) / f"{key}.json"
        if key not in self._known:
            if kept is not None and kept.exists():
                self._known[key] = json.loads(kept.read_text("utf-8"))["answer"]
            else:
                self._known[key] = self._call(question, most)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps({"question": question, "answer": self._known[key]}), "utf-8")
        return self._known[key]

    def _call(self, question, most):
        """One call, with retries.

        Raises:
            UserError: the budget is spent, or the server refuses.
            ReprBasisError: the server does not answer, or not as it should.
        """
        with self._lock:
            self._calls += 1
            if self._calls > self.config.max_calls:
                raise UserError(f"the judge's budget of {self.config.max_calls} calls is spent",
                                do="raise max_calls, or judge less")
        body = {"model": self.config.model, "temperature": 0, "max_tokens": most,
                "messages": [{"role": "user", "content": question}]}
        key = os.environ.get(self.config.key)
        head = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        for attempt in range(self.config.retries + 1):
            try:
                request = urllib.request.Request(url, json.dumps(body).encode(), head)
                with urllib.request.urlopen(request, timeout=self.config.timeout) as reply:
                    return str(json.load(reply)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                if error.code not in PASSING:
                    raise UserError(f"the judge's server answers {error.code}: {error.reason}", where=url,
                                    do=f"check model, url and the key in ${self.config.key}") from error
                problem = error
            except (urllib.error.URLError, TimeoutError) as error:
                problem = error
            except (ValueError, LookupError, TypeError) as error:
                raise ReprBasisError("the judge's server answers in another form than OpenAI's", where=url,
                                     do="choose a server with an OpenAI-compatible chat interface") from error
            if attempt < self.config.retries:
                time.sleep(min(0.5 * 2**attempt, 20))
        raise ReprBasisError(f"the judge's server does not answer: {problem}", where=url, do="start it, or check the address")
