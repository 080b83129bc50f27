"""The official network and ours with the same random weights, loaded under the official tensor names."""

from __future__ import annotations

import torch
from official_code import (
    TOKENIZER_CH,
    OfficialCode,
    OfficialLlamaGen,
    OfficialStudent,
    OfficialTeacher,
    OfficialVar,
)
from torch import nn

from distill.student.llamagen import LlamaGenStudent
from distill.student.var import VarStudent
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.llamagen.teacher import LlamaGenTeacher
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer
from generate_pairs.teachers.var.teacher import VarTeacher
from generate_pairs.teachers.var.tokenizer import IGNORED_BUFFERS as TOKENIZER_BUFFERS
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig
from generate_pairs.teachers.var.transformer import IGNORED_BUFFERS as VAR_BUFFERS
from generate_pairs.teachers.var.transformer import VarConfig, VarTransformer

Config = LlamaGenConfig | VarConfig

LLAMAGEN_CODEBOOK_DIM = LlamaGenTokenizerConfig().codebook_dim


def our_teacher(config: Config) -> Teacher:
    """A teacher of a shape with a minimal tokenizer: making tokens needs neither encoder nor decoder."""
    if isinstance(config, VarConfig):
        var = VarTokenizerConfig(
            config.vocab_size,
            config.codebook_dim,
            TOKENIZER_CH,
            scales=config.scales,
            image_size=16 * config.scales[-1],
        )
        return VarTeacher(VarTransformer(config), VarTokenizer(var)).eval()
    llamagen = LlamaGenTokenizerConfig(config.vocab_size, z_channels=32, ch=32, ch_mult=(1,), num_res_blocks=1)
    return LlamaGenTeacher(LlamaGenTransformer(config), LlamaGenTokenizer(llamagen)).eval()


def load_official(ours: nn.Module, official: nn.Module) -> None:
    """Load an official network's weights strictly, except constants that ours computes."""
    ignored = (*VAR_BUFFERS, *TOKENIZER_BUFFERS)
    state = official.state_dict()
    ours.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith(ignored)})


def teachers(code: OfficialCode, config: Config, device: torch.device) -> tuple[OfficialTeacher, Teacher]:
    """The official teacher of a shape and ours."""
    ours = our_teacher(config)
    if isinstance(config, VarConfig):
        var = OfficialVar.of(code, config)
        load_official(ours.tokenizer, var.tokenizer)
        official: OfficialTeacher = var
    else:
        official = OfficialLlamaGen.of(code, config)
    load_official(ours.transformer, official.network)
    return official.to(device), ours.to(device)


def students(code: OfficialCode, config: Config, device: torch.device) -> tuple[OfficialStudent, nn.Module]:
    """The official student of a shape and our network."""
    if isinstance(config, VarConfig):
        official = OfficialStudent.var(code, config)
        ours: nn.Module = VarStudent(config)
    else:
        official = OfficialStudent.llamagen(code, config, LLAMAGEN_CODEBOOK_DIM)
        ours = LlamaGenStudent(config, LLAMAGEN_CODEBOOK_DIM)
    load_official(ours, official.network)
    return official.to(device), ours.to(device).eval()
