"""Letters mirrored in the alphabet; the mistake: capitals are mirrored as small letters are."""


def atbash(text):
    result = ""
    for char in text:
        if "a" <= char <= "z":
            result += chr(ord("z") - ord(char) + ord("a"))
        elif "A" <= char <= "Z":
            result += chr(ord("Z") - ord(char) + ord("A"))
        else:
            result += char
    return result


FAULTY = """
def atbash(text):
    result = ""
    for char in text:
        if "a" <= char <= "z":
            result += chr(ord("z") - ord(char) + ord("a"))
        elif "A" <= char <= "Z":
            result += chr(ord("z") - ord(char) + ord("a"))
        else:
            result += char
    return result
"""

CASES = [
    (["abc"], "zyx"),
    (["ABC"], "ZYX"),
    (["Hi"], "Sr"),
    (["Zoo"], "All"),
    (["xyz"], "cba"),
    (["A-b"], "Z-y"),
    (["123"], "123"),
    (["Q"], "J"),
    ([""], ""),
    (["Mn"], "Nm"),
]
