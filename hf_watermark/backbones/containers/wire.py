"""A look at the fields of an ONNX file before it is parsed: messages of a few bytes become objects of many, so how many there are is counted first."""

from collections.abc import Iterator

from ...serialization import InvalidInput


# Bytes that describe the graph, and bytes of numbers that are not stored as they are.
MOST_DESCRIPTION, MOST_ENCODED = 64 * 2**20, 512 * 2**20
MOST_FIELDS = 1_000_000
# Field numbers of onnx.proto.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
ENCODED = {4, 5, 7, 10, 11}  # float_data, int32_data, int64_data, double_data, uint64_data


def refuse_swollen(data: bytes) -> None:
    """
    Raises:
        [`~serialization.InvalidInput`]: when a file would take much more memory than it has bytes, or is no such file.
    """
    view, raw, encoded = memoryview(data), 0, 0
    for number, begin, end in fields(view):
        if number != GRAPH:
            continue
        for inner, first, last in fields(view[begin:end]):
            if inner != INITIALIZER:
                continue
            for part, start, stop in fields(view[begin:end][first:last]):
                raw += (stop - start) * (part == RAW_DATA)
                encoded += (stop - start) * (part in ENCODED)
    if encoded > MOST_ENCODED or len(data) - raw - encoded > MOST_DESCRIPTION:
        raise InvalidInput("has a graph of a size that no model needs.")


def fields(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Number and place of every field that has a length, of the others number and an empty place."""
    place, end, seen = 0, len(data), 0
    while place < end:
        seen += 1
        if seen > MOST_FIELDS:
            raise InvalidInput(f"has more than {MOST_FIELDS} parts.")
        tag, place = _number(data, place)
        kind = tag & 7
        if kind == 2:
            length, place = _number(data, place)
            stop = place + length
            if stop > end:
                raise InvalidInput("is cut off.")
            yield tag >> 3, place, stop
            place = stop
            continue
        if kind == 0:
            _, place = _number(data, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise InvalidInput("has fields that protobuf does not know.")
        yield tag >> 3, place, place


def _number(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise InvalidInput("is cut off.")
        byte = data[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise InvalidInput("has a number that is too long.")
