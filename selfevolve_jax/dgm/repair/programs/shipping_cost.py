"""The price of a parcel: by weight, half as much again for haste, free from 100."""


def shipping_cost(weight, price, express):
    if price >= 100 and not express:
        return 0
    cost = 5
    if weight > 2:
        cost += (weight - 2) * 2
    if express:
        cost = cost * 3 // 2
    return cost


CASES = [
    ([1, 20, False], 5),
    ([2, 20, False], 5),
    ([3, 20, False], 7),
    ([5, 99, False], 11),
    ([5, 100, False], 0),
    ([5, 150, True], 16),
    ([1, 10, True], 7),
    ([10, 30, True], 31),
    ([4, 100, True], 13),
    ([7, 0, False], 15),
]
