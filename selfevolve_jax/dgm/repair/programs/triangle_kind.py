""" "equilateral", "isosceles", "scalene", or "none" where the sides make none."""


def triangle_kind(a, b, c):
    sides = sorted([a, b, c])
    if sides[0] <= 0 or sides[0] + sides[1] <= sides[2]:
        return "none"
    if sides[0] == sides[2]:
        return "equilateral"
    if sides[0] == sides[1] or sides[1] == sides[2]:
        return "isosceles"
    return "scalene"


CASES = [
    ([3, 3, 3], "equilateral"),
    ([3, 4, 5], "scalene"),
    ([2, 2, 3], "isosceles"),
    ([1, 2, 3], "none"),
    ([0, 1, 1], "none"),
    ([5, 9, 5], "isosceles"),
    ([1, 1, 5], "none"),
    ([7, 8, 8], "isosceles"),
    ([6, 10, 7], "scalene"),
    ([4, 4, 8], "none"),
    ([-1, -1, -1], "none"),
]
