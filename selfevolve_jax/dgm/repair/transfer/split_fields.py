"""A line of comma-separated fields with quotes; the mistake: a comma in quotes splits too."""


def split_fields(line):
    fields = []
    field = ""
    quoted = False
    for char in line:
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += char
    fields.append(field)
    return fields


FAULTY = """
def split_fields(line):
    fields = []
    field = ""
    quoted = False
    for char in line:
        if char == '"':
            quoted = not quoted
        elif char == ",":
            fields.append(field)
            field = ""
        else:
            field += char
    fields.append(field)
    return fields
"""

CASES = [
    (["a,b"], ["a", "b"]),
    (['"x,y",z'], ["x,y", "z"]),
    (['1,"2,3"'], ["1", "2,3"]),
    ([""], [""]),
    (["one"], ["one"]),
    (['"a,b,c"'], ["a,b,c"]),
    (['q,"r","s,t"'], ["q", "r", "s,t"]),
    ([",,"], ["", "", ""]),
    (['"",v'], ["", "v"]),
    (['k,"l,m",n'], ["k", "l,m", "n"]),
]
