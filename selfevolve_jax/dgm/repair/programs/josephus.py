"""Who is left of n in a ring when every k-th goes, counted from 0."""


def josephus(n, k):
    people = list(range(n))
    place = 0
    while len(people) > 1:
        place = (place + k - 1) % len(people)
        people.pop(place)
    return people[0]


CASES = [
    ([1, 1], 0),
    ([2, 1], 1),
    ([2, 2], 0),
    ([5, 2], 2),
    ([7, 3], 3),
    ([10, 4], 4),
    ([6, 6], 3),
    ([3, 5], 0),
    ([12, 2], 8),
    ([9, 1], 8),
]
