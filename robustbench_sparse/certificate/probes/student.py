"""A substitute: a small network that learns another one's answers, and is attacked in its place.

Papernot, McDaniel, Goodfellow, Jha, Celik, Swami 2017, "Practical Black-Box Attacks against Machine Learning"
(https://arxiv.org/abs/1602.02697). It needs no gradient of the network, and asks it like a user.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import PGD
from attacks.base import SampleRandom
from robustbench_sparse.certificate.probes.user import User, on_grid
from robustbench_sparse.certificate.subject import Subject
from robustbench_sparse.foundation.streams import derive

LESSONS, LEAST = 2000, 200  # images whose answers are learnt
EPOCHS, AGAIN = 8, 2  # over them at first, and once the attacked images' answers are there
ROUNDS, STEPS = 3, 20  # of attacking the student and asking the network; steps of each attack
SURE = 5.0  # logits between first and second class that the answers are scaled to
BATCH = 64
LESSON = 16  # images, all different ones, that a copy is asked
RESERVED = 128  # training images that are kept for other checks


class Student(nn.Module):
    """Two strided convolutions and two linear layers; (B, C, S, S) -> (B, K). Small images get a perceptron.

    Args:
        channels, size, classes: C, S and K.
        seed: of its first weights.
    """

    def __init__(self, channels: int, size: int, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            if size < 16:
                inner = channels * size * size
                layers = [nn.Flatten(), nn.Linear(inner, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
                last = 64
            else:
                side = (size + 3) // 4
                layers = [
                    nn.Conv2d(channels, 16, 5, 2, 2),
                    nn.ReLU(),
                    nn.Conv2d(16, 32, 3, 2, 1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(32 * side * side, 64),
                    nn.ReLU(),
                ]
                last = 64
            self.layers = nn.Sequential(*layers, nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.layers(x)
        return out


class Lessons:
    """Images and what the network said of them.

    Args:
        x: images (N, C, H, W).
        answers: logits (N, K); images without finite ones are left out.
    """

    def __init__(self, x: Tensor, answers: Tensor) -> None:
        finite = answers.isfinite().all(1)
        self.x, answers = x[finite], answers[finite].double()
        top = answers.topk(2, dim=1).values if len(answers) else answers.new_zeros(1, 2)
        gap = (top[:, 0] - top[:, 1]).median().item()
        # However steep the logits are, and whether they are probabilities: what is learnt are shades.
        self.scale = SURE / gap if gap > 0 else 1.0
        self.targets = self._softened(answers)

    def _softened(self, answers: Tensor) -> Tensor:
        return (self.scale * answers).softmax(1).float()

    def add(self, x: Tensor, answers: Tensor) -> None:
        """Further images and answers."""
        finite = answers.isfinite().all(1)
        self.x = torch.cat([self.x, x[finite]])
        self.targets = torch.cat([self.targets, self._softened(answers[finite].double())])


def learn(student: Student, lessons: Lessons, epochs: int, generator: torch.Generator) -> None:
    """Adam on the cross-entropy to the softened answers."""
    student.train()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3, fused=True)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(lessons.x), generator=generator), BATCH):
                rows = rows.to(lessons.x.device)
                optimizer.zero_grad()
                loss = F.cross_entropy(student(lessons.x[rows]), lessons.targets[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    student.eval()


def unseen(s: Subject) -> tuple[Tensor, Tensor]:
    """``RESERVED`` places of training images that no lesson shows, and all others in the order of lessons."""
    assert s.context.images is not None
    generator = torch.Generator().manual_seed(derive(s.seed, "certificate/student/images"))
    order = torch.randperm(s.context.images.count("train"), generator=generator)
    return order[:RESERVED], order[RESERVED:]


def first_images(user: User, count: int, generator: torch.Generator) -> Tensor:
    """Images to be asked that are no test images: a third as they are, a third with noise, a third between two.

    All are of whole bytes, (count, C, H, W); ``Context.images`` is there.
    """
    s = user.s
    assert s.context.images is not None
    places = unseen(s)[1]
    x = s.context.images.gather("train", places.repeat(-(-count // len(places)))[:count])[0].to(s.x.device)
    other = x[torch.randperm(len(x), generator=generator).to(x.device)]
    third = count // 3
    size = min(s.threat.eps, 0.5) if s.threat.norm == "linf" else 0.1
    noise = torch.rand(x[:third].shape, generator=generator).to(x) * 2 - 1
    x[:third] = (x[:third] + size * noise.sign()).clamp(0, 1)
    part = torch.rand(third, generator=generator).to(x).view(-1, 1, 1, 1) * 0.6
    x[third : 2 * third] += part * (other - x)[third : 2 * third]
    return (255 * x).round() / 255


class Substitute:
    """A student of a subject's network, and what it came to.

    Args:
        user: asks the network; ``Context.images`` of its subject is there.
        count: images whose answers are learnt first.

    Attributes:
        candidate: for each of the subject's images the last one tried, of whole bytes and inside the ball (n, C, H, W).
        correct: the network's verdicts on them, each asked alone, (n,).
        agrees: share of test images that the student classifies as the network does.
        asked: images that the network was asked.
    """

    def __init__(self, user: User, count: int) -> None:
        s = user.s
        generator = torch.Generator().manual_seed(derive(s.seed, "certificate/student"))
        x = first_images(user, count, generator)
        lessons = Lessons(x, user.alone(x, range(len(x)), name="lessons", every=LESSON))
        channels, size = s.x.shape[1], s.x.shape[2]
        weights = derive(s.seed, "certificate/student/weights")
        self.student = Student(channels, size, s.classes, weights).to(s.x.device)
        learn(self.student, lessons, EPOCHS, generator)
        rows = torch.arange(len(s), device=s.x.device)
        answers: list[Tensor] = []
        self.candidate, self.correct = s.x.clone(), user.correct(s.x, rows, answers)
        with torch.no_grad():
            self.agrees = (self.student(s.x).argmax(1) == answers[0].argmax(1)).float().mean().item()
        lessons.add(s.x, answers[0])
        self.asked = len(x) + len(s)
        for k in range(ROUNDS):
            rows = (self.correct > 0.5).nonzero().flatten()
            if len(rows) == 0:
                break
            candidate = self._attacked(user, rows, s.random(f"student/{k}", rows), k)
            learnt: list[Tensor] = []
            self.candidate[rows], self.correct[rows] = candidate, user.correct(candidate, rows, learnt)
            self.asked += len(rows)
            if k + 1 < ROUNDS:
                lessons.add(candidate, learnt[0])
                learn(self.student, lessons, AGAIN, generator)

    def _attacked(self, user: User, rows: Tensor, random: SampleRandom, k: int) -> Tensor:
        s = user.s
        attack = PGD(
            steps=STEPS, loss="margin" if k % 2 == 0 else "ce", momentum=1.0, keep="last", random_start=k > 0
        )
        return on_grid(attack(self.student, s.x[rows], s.y[rows], s.threat, random), s.x[rows], s.threat)
