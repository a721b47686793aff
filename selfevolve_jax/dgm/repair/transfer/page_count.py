"""How many pages hold all items; the mistake: a last page that is not full is lost."""


def page_count(items, per_page):
    pages = items // per_page
    if items % per_page > 0:
        pages += 1
    return pages


FAULTY = """
def page_count(items, per_page):
    pages = items // per_page
    return pages
"""

CASES = [
    ([10, 5], 2),
    ([11, 5], 3),
    ([1, 5], 1),
    ([0, 5], 0),
    ([9, 10], 1),
    ([20, 10], 2),
    ([21, 20], 2),
    ([99, 10], 10),
    ([5, 1], 5),
    ([7, 3], 3),
]
