"""PTX as basic blocks of instructions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

_LINE = re.compile(r"(?:@(!?%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)$")
_REGISTER = re.compile(r"%[a-z]+\d*(?:\.[xyz])?")
# These have no destination, or their first operand is an address.
_NO_DESTINATION = ("st.", "red.", "bar.", "bra", "ret", "cp.async", "fence", "membar", "stmatrix", "wgmma", "tcgen05")


class Instruction(NamedTuple):
    predicate: str  # "" if it runs always
    opcode: str
    operands: str
    line: tuple[int, int]  # of the source: file's number, line

    @property
    def registers(self) -> tuple[list[str], list[str]]:
        """Written and read registers."""
        if self.opcode.startswith(_NO_DESTINATION):
            return [], _REGISTER.findall(self.operands)
        if self.operands.startswith("{"):
            written, _, read = self.operands.partition("}")
        else:
            written, _, read = self.operands.partition(",")
        return _REGISTER.findall(written), _REGISTER.findall(read)

    @property
    def is_global(self) -> bool:
        """Reads or writes global memory."""
        return re.match(r"(?:ld|st|atom|red)\.(?:\w+\.)*global\b|cp\.async\.(?:c[ag]|bulk)\b", self.opcode) is not None

    @property
    def address(self) -> str:
        """The text of its global address."""
        return re.findall(r"\[(.*?)\]", self.operands)[-1]

    def __str__(self) -> str:
        return f"line {self.line[1]}: {self.opcode} {self.operands}"


@dataclass
class Block:
    label: str = ""
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)
    predecessors: list[int] = field(default_factory=list)


class Program:
    """The only kernel of a PTX file."""

    def __init__(self, ptx: str) -> None:
        self.pointers = re.findall(r"\.param \.u64 \.ptr[^,)]*?(\w+)\s*[,)]", ptx)
        self.files = {int(i): name for i, name in re.findall(r'^\s*\.file\s+(\d+) "(.*?)"', ptx, re.M)}
        self.blocks = [Block()]
        _, _, body = re.sub(r"//.*", "", ptx).partition(".entry")
        line = (0, 0)
        for text in body[body.index("\n{") + 2 :].split("\n"):
            text = text.strip()
            if text.startswith(".loc"):
                _, file, row, *_ = text.split()
                line = int(file), int(row)
            elif label := re.match(r"(\$L__BB\w+):", text):
                if self.blocks[-1].label or self.blocks[-1].instructions:
                    self.blocks.append(Block())
                self.blocks[-1].label = label[1]
            for statement in text.split(";"):
                if found := _LINE.match(statement.strip()):
                    instruction = Instruction(found[1] or "", found[2], found[3], line)
                    self.blocks[-1].instructions.append(instruction)
                    if instruction.opcode.startswith("bra") and instruction.predicate:
                        self.blocks.append(Block())
            if text.startswith(".section"):
                break
        self._connect()

    def _connect(self) -> None:
        labels = {block.label: i for i, block in enumerate(self.blocks) if block.label}
        for i, block in enumerate(self.blocks):
            last = block.instructions[-1] if block.instructions else None
            opcode = last.opcode.partition(".")[0] if last else ""
            assert not any(x.opcode.startswith(("brx", "call")) for x in block.instructions)
            if last and opcode == "bra":
                block.successors.append(labels[last.operands.strip()])
            if not last or opcode not in ("bra", "ret") or last.predicate:
                block.successors += [i + 1] if i + 1 < len(self.blocks) else []
            for j in block.successors:
                self.blocks[j].predecessors.append(i)

    @cached_property
    def definitions(self) -> dict[str, list[Instruction]]:
        """By register, everything that writes it."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions():
            for register in instruction.registers[0]:
                found.setdefault(register, []).append(instruction)
        return found

    def instructions(self) -> Iterable[Instruction]:
        return (x for block in self.blocks for x in block.instructions)

    def base_pointers(self, instruction: Instruction) -> set[str]:
        """The pointer arguments that an instruction's global address can come from."""
        found: set[str] = set()
        seen: set[str] = set()
        left = _REGISTER.findall(instruction.address)
        while left:
            register = left.pop()
            if register in seen:
                continue
            seen.add(register)
            for definition in self.definitions.get(register, ()):
                if definition.opcode.startswith("ld.param"):
                    found |= set(re.findall(r"\w+_param_\d+", definition.operands)) & set(self.pointers)
                elif not definition.opcode.startswith(("ld.", "atom.", "setp")):
                    left += [x for x in definition.registers[1] if not x.startswith("%p")]
        return found
