"""Order in canonical JSON: names of a map and members of a set."""

from cdc_pipeline.transform.fast.binary import compare_base64
from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import compare_bytes, copy_bytes, put_byte
from cdc_pipeline.transform.fast.numbers import compare_numbers
from cdc_pipeline.transform.fast.tokens import BS, COMMA, NS, SS


@compiled
def compare_members(tag, out, a, a_end, b, b_end):
    """Compare two members of a set of this type; result as of `compare_bytes`."""
    if tag == NS:
        return compare_numbers(out, a, a_end, b, b_end)
    if tag == BS:
        return compare_base64(out, a, a_end, b, b_end)
    return compare_bytes(out, a, a_end, b, b_end)


@compiled
def sort_members(tag, out, starts, ends, order, base, count):
    """Sort `order[base:base + count]`, indexes into `starts` and `ends`; Shell's sort."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for k in range(base + gap, base + count):
            moved = order[k]
            at = k
            while at >= base + gap:
                other = order[at - gap]
                if (
                    compare_members(
                        tag, out, starts[other], ends[other], starts[moved], ends[moved]
                    )
                    <= 0
                ):
                    break
                order[at] = other
                at -= gap
            order[at] = moved
        gap //= 3


@compiled
def _are_ascending(out, starts, ends, order, base, count):
    for k in range(base + 1, base + count):
        a, b = order[k - 1], order[k]
        if compare_bytes(out, starts[a], ends[a], starts[b], ends[b]) >= 0:
            return False
    return True


@compiled
def write_set_in_order(tag, out, first, o, starts, ends, order, base, count):
    """Write the members in order after the unsorted ones, then move them back."""
    end = o
    for k in range(base, base + count):
        place = order[k]
        if k > base:
            before = order[k - 1]
            if (
                compare_members(tag, out, starts[before], ends[before], starts[place], ends[place])
                == 0
            ):
                continue
            put_byte(out, end, COMMA)
            end += 1
        end = copy_bytes(out, starts[place] - 1, ends[place] + 1, out, end)
    return copy_bytes(out, o, end, out, first)


@compiled
def write_map_in_order(out, o, starts, ends, order, base, count, habits):
    """Sort the members of a map that ends at `o`; False: a repeated name.

    `starts` and `ends`: of names, without quotes; a comma separates members. `habits`: the order of
    the last map with this number of members, which often fits again.
    """
    has_habit = count < len(habits)
    for k in range(count):
        order[base + k] = base + (habits[count, k] if has_habit else k)
    if not _are_ascending(out, starts, ends, order, base, count):
        sort_members(SS, out, starts, ends, order, base, count)
        if not _are_ascending(out, starts, ends, order, base, count):
            return False
        if has_habit:
            for k in range(count):
                habits[count, k] = order[base + k] - base
    moved = base
    while moved < base + count and order[moved] == moved:
        moved += 1
    if moved == base + count:
        return True
    first, last, end = starts[moved] - 1, base + count - 1, o
    for k in range(moved, base + count):
        member = order[k]
        if k > moved:
            put_byte(out, end, COMMA)
            end += 1
        stop = o if member == last else starts[member + 1] - 2
        end = copy_bytes(out, starts[member] - 1, stop, out, end)
    copy_bytes(out, o, end, out, first)
    return True
