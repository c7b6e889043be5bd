"""Bytes and speeds as people read them."""

__all__ = ["size", "speed"]


def size(num_bytes: float) -> str:
    """Bytes in a unit that fits: 1.2 GiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while num_bytes >= 1024 and len(units) > 1:
        num_bytes /= 1024
        units.pop(0)
    return f"{num_bytes:.0f} {units[0]}" if units[0] == "B" else f"{num_bytes:.1f} {units[0]}"


def speed(bytes_per_second: float) -> str:
    """Bytes a second, in powers of ten as networks and disks are sold: 1.2 GB/s."""
    for unit, factor in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_per_second >= factor:
            return f"{bytes_per_second / factor:.1f} {unit}"
    return f"{bytes_per_second:.0f} B/s"
