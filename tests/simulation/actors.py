"""Processes that take turns: threads of which one runs at a time, chosen by a seeded draw, on a clock of their own."""

import random
import threading
from collections.abc import Callable

STEP_S = 0.004
LAGS_S = (0.0, 0.0, 0.0, 0.2, 2.0)
CHANGES_PACE = 0.02


class Killed(BaseException):
    """Unwinds an actor that is killed. No `except Exception` catches it, as nothing catches a SIGKILL."""


class Actor:
    """One process. It runs from one `pause` to the next; a frozen one is passed over until it is thawed.

    Its pace changes now and then: a slow one falls many turns of the others behind.
    """

    def __init__(self, stage: "Stage", name: str, main: Callable[["Actor"], None]) -> None:
        self.name = name
        self.wakes_at = stage.now
        self.frozen_until = 0.0
        self._lag = 0.0
        self.killed = self.done = False
        self.error: Exception | None = None
        self._stage = stage
        self._main = main
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def pause(self, where: str, seconds: float = 0.0) -> None:
        """Let others run; goes on after so many seconds at the earliest."""
        if self.killed:
            raise Killed
        self._stage.note(f"{self.name} {where}")
        stage = self._stage
        if stage.uneven and stage.draw.random() < CHANGES_PACE:
            self._lag = stage.draw.choice(LAGS_S)
        self.wakes_at = stage.now + seconds + (self._lag * stage.draw.random() if stage.uneven else 0.0)
        self._stage.back.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def go_on(self) -> None:
        """Run it to its next pause."""
        self._go.release()
        self._stage.back.acquire()

    def kill(self) -> None:
        """End it where it stands."""
        self.killed = True
        if not self.done:
            self.go_on()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self._main(self)
        except Killed:
            pass
        except Exception as error:
            self.error = error
        self.done = True
        self._stage.back.release()


class Stage:
    """The actors, and `now` in seconds, which passes as they take turns and jumps while all of them wait."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.now = 0.0
        self.steps = 0
        self.uneven = True
        self.back = threading.Semaphore(0)
        self.actors: list[Actor] = []
        self.heard: Callable[[str], None] | None = None

    def enter(self, name: str, main: Callable[[Actor], None]) -> Actor:
        actor = Actor(self, name, main)
        self.actors.append(actor)
        return actor

    def note(self, what: str) -> None:
        if self.heard is not None:
            self.heard(f"{self.steps:6} {self.now:9.3f} {what}")

    def step(self) -> Actor | None:
        """One actor's turn; returns the actor, None where there is none."""
        waiting = [actor for actor in self.actors if not actor.done]
        if not waiting:
            return None
        self.now = max(self.now, min(max(actor.wakes_at, actor.frozen_until) for actor in waiting))
        ready = [actor for actor in waiting if max(actor.wakes_at, actor.frozen_until) <= self.now]
        actor = self.draw.choice(ready)
        self.now += self.draw.random() * STEP_S
        self.steps += 1
        actor.go_on()
        self.actors = [one for one in self.actors if not one.done]
        return actor
