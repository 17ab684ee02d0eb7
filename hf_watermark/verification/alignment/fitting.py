"""
Fits the change of coordinates of one space from anchors (PROTOCOL.md §5.2 step 3).

A suspect that was derived from the reference by x_suspect = M x_reference has writers W_s = M W_r and readers V_s = V_r M^-1 once all
other axes are aligned. M is a permutation times scales (assignment), a rotation (Procrustes), or any matrix (least squares).
"""

from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment

from ...backbones.symmetry import Factors, Mixed, Moved


# The matches of a space are recognised when their mean resemblance leaves the mean second choice behind by this share of what is left up to 1.
RECOGNISED = 0.1
# Resemblance from which a second suspect unit counts as a copy of one that is matched already, absolute and against the matched one's.
COPY, COPY_SHARE = 0.8, 0.9
# A column of the suspect that is so many times larger, against the reference's, than the median one says nothing.
WILD = 1e4
# Rounds in which a matrix is fitted again from writers and readers together.
REFINEMENTS = 2
# Rounds in which what is held out of the reference is filled in as the fit so far says.
FILLS = 8
# Writers and readers that are off by less than this share of their size count as if off by so much, so that neither silences the other.
LEAST_OFF = 1e-3


@dataclass
class Feature:
    """
    What one tensor says about the channels of a space.

    Args:
        suspect, reference (`torch.Tensor`):
            `[channels, K]`, in equal coordinates but for the space's own.
        flow (`str`):
            `"out"`: M multiplies the rows; `"in"`: M^-T does.
        scale (`int`):
            Class whose factors the rows carry.
        reads (`int`, *optional*):
            Of what writes channels one by one, the class by whose factors the rows are divided besides; -1 where that is not known.
    """

    suspect: torch.Tensor
    reference: torch.Tensor
    flow: str
    scale: int
    reads: int | None = None

    @property
    def columns(self) -> int:
        return self.suspect.shape[1]


@dataclass
class Fit:
    """
    Attributes:
        change: From suspect to reference coordinates.
        factors: By class.
        recognised (`torch.Tensor`): Bool per reference channel.
        cosine (`float`): Mean resemblance of the matched channels.
    """

    change: Moved | Mixed
    recognised: torch.Tensor
    cosine: float
    factors: dict[int, Factors] = field(default_factory=dict)
    done: str = ""


def fit_permutation(features: list[Feature], kinds: list[str]) -> Fit:
    """
    Assignment by resemblance, then one factor per channel and class.

    Args:
        kinds (`list[str]`):
            Kind of every class (`none`, `positive`, `any`) by its number.
    """
    features = _told(features)
    resemblance, order, into = _matched(features, kinds)
    if any(feature.reads is not None for feature in features):
        # Rows that are divided by the factors of what they read resemble more once these are known.
        whole = [_undivided(feature, _amplitudes(features, into, kinds)) or feature for feature in features]
        resemblance, order, into = _matched(whole, kinds)
    suspects, references = resemblance.shape
    known = order >= 0
    source = torch.nonzero(into >= 0).flatten()
    cosine = float(resemblance[order[known], known.nonzero().flatten()].mean()) if known.any() else 0.0
    fit = Fit(Moved(order, source, into[source]), _recognised(resemblance, order), cosine)
    identity = len(order) == suspects and torch.equal(order, torch.arange(suspects))
    fit.done = "" if identity else "permuted"
    if suspects > references:
        fit.done = f"{suspects - int(known.sum())} units added"
    elif suspects < references:
        fit.done = f"{references - suspects} units removed"
    for scale, amplitude in sorted(_amplitudes(features, into, kinds).items()):
        safe = amplitude[order.clamp_min(0)]
        fit.factors[scale] = Factors(1 / safe, amplitude[source])
        spread = safe[known].abs().log2()
        if len(spread) and float((spread - spread.median()).abs().max()) > 0.1 or (safe < 0).any():
            fit.done = (fit.done + ", rescaled").removeprefix(", ")
    return fit


def _told(features: list[Feature]) -> list[Feature]:
    """
    Those that both sides have. One that only one has (a bias that was zero before the mark, a normalisation that was folded away) says nothing.
    """
    return [feature for feature in features if feature.reference.any() and feature.suspect.any()] or features


def _matched(features: list[Feature], kinds: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Resemblance `[suspects, references]`, the suspect's channel of every reference channel, and the other way round (-1: none)."""
    resemblance = _resemblance(features, kinds)
    suspects, references = resemblance.shape
    rows, columns = _assignment(resemblance)
    order = torch.full((references,), -1)
    order[columns] = rows
    into = _sources(order, suspects)
    if suspects > references:
        # By what writes them alone: the two units of a clique must be taken for copies together, so that their columns cancel.
        writers = [feature for feature in features if feature.flow == "out"]
        into = _copies(_resemblance(writers, kinds) if writers else resemblance, order, into)
    return resemblance, order, into


def _assignment(resemblance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (suspect, reference) of the largest sum. Where everyone can have its first choice, as after a pure transform, that is it."""
    suspects, references = resemblance.shape
    choice = resemblance.argmax(dim=0 if suspects >= references else 1)
    if len(choice.unique()) == len(choice):
        places = torch.arange(len(choice))
        return (choice, places) if suspects >= references else (places, choice)
    rows, columns = linear_sum_assignment(resemblance.numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _resemblance(features: list[Feature], kinds: list[str]) -> torch.Tensor:
    """Cosines `[suspects, references]`, averaged over groups that share their factors, weighted by the root of their length."""
    groups: dict[tuple[str, int, int | None], list[Feature]] = {}
    for feature in features:
        groups.setdefault((feature.flow, feature.scale, feature.reads), []).append(feature)
    if any(feature.reads is not None for feature in features):
        # A number alone, under a factor of its own, says little; it is heard once the factors are known.
        longer = {key: members for key, members in groups.items() if sum(item.columns for item in members) > 1}
        groups = longer or groups
    total, weights = None, 0.0
    for (_, *scales), members in groups.items():
        suspect = torch.cat([feature.suspect for feature in members], dim=1)
        reference = torch.cat([feature.reference for feature in members], dim=1)
        cosine = unit_rows(suspect) @ unit_rows(reference).mT
        if any(scale is not None and (scale < 0 or kinds[scale] == "any") for scale in scales):
            cosine = cosine.abs()
        weight = suspect.shape[1] ** 0.5
        total = weight * cosine if total is None else total + weight * cosine
        weights += weight
    assert total is not None
    return total / weights


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; those of zeros stay."""
    # By the largest entry first, whose square may not exist in float32.
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-20)


def without_wild_columns(suspect: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Both sides of a feature, `[channels, K]` each, without the columns in which the suspect is out of all proportion: weights behind a dead
    channel are free, and huge ones would drown all others.
    """
    if suspect.shape[1] != reference.shape[1] or not suspect.numel():
        return suspect, reference
    ratio = suspect.abs().amax(dim=0).double() / reference.abs().amax(dim=0).double().clamp_min(1e-30)
    usual = ratio[ratio > 0]
    if not len(usual):
        return suspect, reference
    wild = ratio > WILD * usual.median()
    if not wild.any():
        return suspect, reference
    return suspect.masked_fill(wild, 0), reference.masked_fill(wild, 0)


def _sources(order: torch.Tensor, suspects: int) -> torch.Tensor:
    into = torch.full((suspects,), -1)
    known = order >= 0
    into[order[known]] = torch.nonzero(known).flatten()
    return into


def _copies(resemblance: torch.Tensor, order: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Reference unit of every suspect unit, or -1: an added unit that looks like the match of one shares its work (split)."""
    matched = resemblance[order.clamp_min(0), torch.arange(len(order))]
    best, place = resemblance.max(dim=1)
    copy = (into < 0) & (best > COPY) & (best > COPY_SHARE * matched[place])
    return torch.where(copy, place, into)


def _recognised(resemblance: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """
    Whether a channel's match stands out. Channels of an unrelated network resemble their match about as much as their second choice, because an
    assignment cannot give every one its first.
    """
    places = torch.arange(resemblance.shape[1])
    rows = resemblance[order.clamp_min(0)]
    own = rows[places, places].clone()
    rows[places, places] = -1.0
    second = rows.max(dim=1).values.mean() if len(places) > 1 else torch.tensor(0.0)
    known = order >= 0
    gap = own[known].mean() - second if known.any() else torch.tensor(0.0)
    return known & (own > second) & bool(gap > RECOGNISED * (1 - second))


def _read_one_by_one(feature: Feature, known: dict[int, torch.Tensor]) -> Feature:
    """What a feature says of the class that it reads, where that which it writes is known (or has no factors)."""
    suspect = feature.suspect
    if feature.scale in known:
        suspect = suspect / known[feature.scale].to(suspect)[:, None]
    assert feature.reads is not None
    return Feature(suspect, feature.reference, "in", feature.reads)


def _undivided(feature: Feature, known: dict[int, torch.Tensor]) -> Feature | None:
    """A feature without the factors of what it reads; `None` where these are not known."""
    if feature.reads is None:
        return feature
    if feature.reads not in known:
        return None
    return Feature(
        feature.suspect * known[feature.reads].to(feature.suspect)[:, None], feature.reference, "out", feature.scale
    )


def _amplitudes(features: list[Feature], into: torch.Tensor, kinds: list[str]) -> dict[int, torch.Tensor]:
    """
    By class that has a scale, a `[suspects]` with suspect channel u = a_u times its reference channel. First of those that a whole layer writes, then
    of those that are written one by one from a known one, in the order in which that leads on; then of the rest.
    """
    classes = sorted(
        scale
        for scale in {*(f.scale for f in features), *(f.reads for f in features)}
        if scale is not None and scale >= 0 and kinds[scale] != "none"
    )
    found: dict[int, torch.Tensor] = {}
    for scale in classes:
        writers = [f for f in features if f.scale == scale and f.flow == "out" and f.reads is None]
        if sum(feature.columns for feature in writers) > 1:
            found[scale] = _amplitude(writers, into, kinds[scale])
    while True:
        step = {}
        for scale in classes:
            writers = [f for f in features if f.scale == scale and f.flow == "out" and scale not in found]
            whole = [item for feature in writers if (item := _undivided(feature, found)) is not None]
            if len(whole) > sum(feature.reads is None for feature in writers):
                step[scale] = _amplitude(whole, into, kinds[scale])
        # Where nothing leads on, from what is written back to what is read.
        for scale in classes if not step else ():
            readers = [
                _read_one_by_one(f, found)
                for f in features
                if f.reads == scale and scale not in found and (f.scale in found or kinds[f.scale] == "none")
            ]
            if readers:
                step[scale] = _amplitude(readers, into, kinds[scale])
        if not step:
            break
        found |= step
    for scale in classes:
        if scale not in found:
            mine = [f for f in features if f.scale == scale]
            sides = [[f for f in mine if f.flow == flow and f.reads is None] for flow in ("out", "in")]
            chosen = max(sides, key=lambda side: sum(feature.columns for feature in side)) or mine
            if chosen:
                found[scale] = _amplitude(chosen, into, kinds[scale])
    return found


def _amplitude(features: list[Feature], into: torch.Tensor, kind: str) -> torch.Tensor:
    """a `[suspects]` from features of one flow."""
    suspect = torch.cat([feature.suspect for feature in features], dim=1).double()
    reference = torch.cat([feature.reference for feature in features], dim=1).double()[into.clamp_min(0)]
    amplitude = (suspect * reference).sum(dim=1) / reference.square().sum(dim=1).clamp_min(1e-30)
    norms = suspect.norm(dim=1) / reference.norm(dim=1).clamp_min(1e-20)
    if kind == "positive":
        amplitude = torch.where(amplitude > 0, amplitude, norms)
    amplitude = torch.where(amplitude.abs() > 1e-6 * norms.clamp_min(1e-20), amplitude, norms.clamp_min(1e-20))
    if features[0].flow == "in":
        amplitude = 1 / amplitude
    return torch.where(into >= 0, amplitude, 1.0).float()


def fit_rotation(features: list[Feature], size: int) -> Fit:
    """Orthogonal Procrustes; the constant vector, which rotations keep, is one more feature."""
    features = _told(features)
    suspect, reference = (side.double() for side in _stacked(features))
    held = _held_out(features)
    told, matrix = reference, torch.eye(size, dtype=torch.float64)
    for _ in range(FILLS):
        product = suspect @ told.mT + 1e-3 * told.square().sum() / size**2
        left, _, right = torch.linalg.svd(product)
        before, matrix = matrix, left @ right
        if not held.any() or float((matrix - before).norm()) < 1e-3 * size**0.5:
            break
        told = torch.where(held, matrix.mT @ suspect, reference)
    back = matrix.mT @ suspect
    cosine = float((back * told).sum() / (back.norm() * told.norm()).clamp_min(1e-20))
    moved = float((matrix - torch.eye(size)).norm()) > 0.05 * size**0.5
    change = Mixed(matrix.mT.float(), matrix.float())
    return Fit(change, torch.full((size,), cosine > 0.3), cosine, done="rotated" if moved else "")


def _held_out(features: list[Feature]) -> torch.Tensor:
    """
    Where the reference's side of [`_stacked`] says nothing: the channels of which a reader carries. In the suspect's coordinates these are not apart.
    """
    return torch.cat([~item.reference.any(dim=1, keepdim=True).expand(item.reference.shape) for item in features], 1)


def fit_matrix(features: list[Feature], size: int) -> Fit:
    """Least squares for any matrix, from writers and readers together; from one of both where the other is missing."""
    features = _told(features)
    flows = {flow: [feature for feature in features if feature.flow == flow] for flow in ("out", "in")}
    chosen = flows["out"] or flows["in"]
    suspect, reference = _stacked(chosen)
    # M minimises |suspect - M reference|; of readers the inverse transpose does.
    solution = torch.linalg.lstsq(reference.double().mT, suspect.double().mT).solution.mT
    matrix = solution if flows["out"] else torch.linalg.pinv(solution).mT
    if flows["out"] and flows["in"]:
        for _ in range(FILLS if _held_out(flows["in"]).any() else REFINEMENTS):
            matrix = _refined(matrix, flows["out"], flows["in"])
    inverse = torch.linalg.pinv(matrix)
    back = (inverse if flows["out"] else matrix.mT).float() @ suspect
    cosine = float((back * reference).sum() / (back.norm() * reference.norm()).clamp_min(1e-20))
    moved = suspect.shape[0] != size or float((matrix - torch.eye(size)).norm()) > 0.05 * size**0.5
    change = Mixed(inverse.float(), matrix.float())
    return Fit(change, torch.full((size,), cosine > 0.3), cosine, done="mixed" if moved else "")


def _refined(matrix: torch.Tensor, writers: list[Feature], readers: list[Feature]) -> torch.Tensor:
    """
    What is left of M once `matrix` is undone, fitted in the reference's coordinates: there a suspect's changes of its weights weigh equally in
    all directions, however badly conditioned M is. Writers and readers count by how far each are off at `matrix`.
    """
    (written, own_written), (read, own_read) = (
        (suspect.double(), reference.double()) for suspect, reference in (_stacked(writers), _stacked(readers))
    )
    written, read = torch.linalg.pinv(matrix) @ written, matrix.mT @ read
    own_read = torch.where(_held_out(readers), read, own_read)
    off = [(own - found).square().mean().sqrt() for own, found in ((own_written, written), (own_read, read))]
    # Writers were fitted to, which leaves them less far off than they are.
    columns, size = own_written.shape[1], len(own_written)
    off[0] = off[0] * (columns / max(columns - size, 1)) ** 0.5
    one, two = (1 / max(float(value), LEAST_OFF) for value in off)
    # From the identity, which is kept where nothing says otherwise.
    rest = sylvester(one * (written - own_written), two * read, one * own_written, two * (own_read - read))
    return matrix + matrix @ rest


def sylvester(
    first: torch.Tensor, second: torch.Tensor, own_first: torch.Tensor, own_second: torch.Tensor
) -> torch.Tensor:
    """
    A (float64) that minimises |first - A own_first|^2 + |A^T second - own_second|^2, `[channels, K]` each: the Sylvester equation
    A C + B A = R with symmetric B and C, so eigenvectors solve it, ten times as fast as the Schur forms of scipy's solver.
    """
    a, b, c, d = (item.double() for item in (first, second, own_first, own_second))
    rows, left = torch.linalg.eigh(b @ b.mT)
    columns, right = torch.linalg.eigh(c @ c.mT)
    wanted = left.mT @ (a @ c.mT + b @ d.mT) @ right
    sums = rows[:, None] + columns
    # What neither side determines stays zero.
    determined = sums > 1e-9 * sums.max()
    return left @ torch.where(determined, wanted / torch.where(determined, sums, 1.0), 0.0) @ right.mT


def _stacked(features: list[Feature]) -> tuple[torch.Tensor, torch.Tensor]:
    """All features side by side, each with unit mean square so that none drowns the others."""
    sizes = [
        torch.stack([side.square().mean().sqrt() for side in (item.reference, item.suspect)]).max().clamp_min(1e-20)
        for item in features
    ]
    suspect = torch.cat([item.suspect / size for item, size in zip(features, sizes, strict=True)], dim=1)
    return suspect, torch.cat([item.reference / size for item, size in zip(features, sizes, strict=True)], dim=1)
