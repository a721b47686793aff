"""Seconds as "h:mm:ss", or "m:ss" under an hour."""


def format_duration(seconds):
    hours = seconds // 3600
    minutes = seconds % 3600 // 60
    rest = seconds % 60
    if hours > 0:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}"


CASES = [
    ([0], "0:00"),
    ([59], "0:59"),
    ([60], "1:00"),
    ([61], "1:01"),
    ([3599], "59:59"),
    ([3600], "1:00:00"),
    ([3661], "1:01:01"),
    ([86399], "23:59:59"),
    ([7325], "2:02:05"),
    ([600], "10:00"),
]
