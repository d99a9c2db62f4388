"""What other programs are configured with, as settings: real files, key by key."""

import json
from pathlib import Path
from typing import Any

import pytest

from weigh import api
from weigh.errors import InputError, NotModelledError, UsageError
from weigh.jobs import FORMATS, Job, read
from weigh.jobs.arguments import options

FILES = Path(__file__).parents[1] / "data" / "jobs"


def job(name: str, **more: Any) -> Job:
    return api.job(FILES / name, **more)


FORMS = {
    "axolotl-fft-8b.yaml": "axolotl",
    "llama-factory-qwen3-lora.yaml": "llama-factory",
    "accelerate-fsdp2.yaml": "accelerate",
    "accelerate-zero3.yaml": "accelerate",
    "trl-zephyr-sft.yaml": "trainer",
    "trainer.args": "trainer",
    "deepspeed-z3.json": "deepspeed",
    "torchtune-lora.yaml": "torchtune",
    "torchtitan-8b.toml": "torchtitan",
    "megatron-8b.sh": "megatron",
}


@pytest.mark.parametrize("name", FORMS)
def test_files_are_recognised_and_every_key_has_a_fate(name: str) -> None:
    found = job(name)
    assert list(found.read_as.values()) == [FORMS[name]]
    assert found.unknown == ()
    assert not set(found.used) & set(found.harmless)


def test_every_format_has_an_example() -> None:
    assert {*FORMS.values(), "weigh"} == set(FORMATS)


def test_axolotl() -> None:
    words = job("axolotl-fft-8b.yaml").words
    assert words == {
        "sequence": 8192,
        "batch": 1,
        "accumulation": 8,
        "dtype": "bf16",
        "autocast": "bf16",
        "optimizer": "paged_adamw_8bit",
        "checkpointing": "full",
        "attention": "flash_attention_2",
        "clip": True,
        "weight_decay": 0.0,
    }


def test_axolotl_names_what_it_cannot_say() -> None:
    whole = job("axolotl-fft-8b-liger-fsdp.yaml")
    assert (whole.words["fused_kernels"], whole.words["loss"]) == ("liger", "liger_fused_linear")
    with pytest.raises(NotModelledError, match=r"liger_rope: True"):
        job("axolotl-fft-8b-liger-fsdp.yaml", ignore=("liger_rms_norm",))
    passed = ("liger_rope", "liger_rms_norm", "liger_glu_activation")
    found = job("axolotl-fft-8b-liger-fsdp.yaml", ignore=passed)
    assert "fused_kernels" not in found.words
    assert found.words["shard"] == "fsdp1"
    assert found.words["use_orig_params"] is False
    assert found.words["offload_parameters"] is True
    assert found.words["loss"] == "liger_fused_linear"
    assert any("liger_rope" in what for what, _, _ in found.assumed)


def test_axolotl_adapters() -> None:
    words = job("axolotl-lora-8b.yml").words
    assert (words["quantization"], words["upcast"]) == ("int8", "all")
    lora = words["lora"]
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    assert lora == {"rank": 32, "targets": ["all-linear"], "dropout": 0.05, **saved}


def test_llama_factory_checkpoints_reentrantly_and_keeps_what_it_trains_in_fp32(tmp_path: Path) -> None:
    words = job("llama-factory-qwen3-lora.yaml").words
    assert (words["checkpointing"], words["dtype"], words["lora"]["rank"]) == ("reentrant", "bf16", 8)
    text = (FILES / "llama-factory-qwen3-lora.yaml").read_text().replace("type: lora", "type: full")
    (tmp_path / "full.yaml").write_text(text)
    words = api.job(tmp_path / "full.yaml").words
    assert (words["dtype"], words["autocast"], "lora" in words) == ("fp32", "bf16", False)


def test_a_launcher_and_a_script_make_one_training() -> None:
    found = api.job(FILES / "accelerate-fsdp2.yaml", FILES / "trl-zephyr-sft.yaml")
    assert found.model == "mistralai/Mistral-7B-v0.1"
    assert (found.words["gpus_per_node"], found.words["shard"], found.words["batch"]) == (8, "fsdp2", 16)
    report = api.train(job=found, device="h100", batch=1)
    assert report.recipe.batch == 1
    assert report.recipe.mesh.shard == 8
    assert report.runtime == "transformers"


def test_files_that_contradict_are_refused() -> None:
    with pytest.raises(UsageError, match=r"accelerate-zero3.yaml: mixed_precision says 'fp16'.*bf16 says 'bf16'"):
        api.job(FILES / "accelerate-zero3.yaml", FILES / "trl-zephyr-sft.yaml")


def test_what_no_setting_knows_is_named_with_its_key() -> None:
    found = api.job(FILES / "accelerate-zero3.yaml")
    with pytest.raises((NotModelledError, UsageError), match=r"zero_stage|deepspeed"):
        api.train("gpt2", job=Job(words={**found.words, "shard": "zero9"}, said_by=found.said_by))


def test_torchtitan() -> None:
    found = job("torchtitan-8b.toml")
    assert found.model == "llama-3.1-8b"
    want = {"replicas": 2, "shard": "fsdp2", "nodes": 2, "gpus_per_node": 8, "param_dtype": "bf16", "dtype": "fp32"}
    assert want.items() <= found.words.items()
    assert found.defaults >= {"param_dtype", "reduce_dtype", "implementation"}


def test_torchtune() -> None:
    found = job("torchtune-lora.yaml")
    assert found.model == "llama-2-7b"
    assert found.words["lora"]["targets"] == ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
    recipe = api.train(job=found, gpus_per_node=2).recipe
    assert (recipe.shard, recipe.sequence, recipe.implementation) == ("fsdp2", 512, "fused")


def test_megatron_says_model_mesh_and_micro_batches() -> None:
    found = job("megatron-8b.sh")
    assert api.params(found.model).total == 8_030_261_248
    want = {"tensor": 2, "nodes": 4, "gpus_per_node": 8, "sequence": 8192, "accumulation": 8, "dtype": "bf16"}
    assert want.items() <= found.words.items()
    assert found.own_loop


def test_trainer_arguments() -> None:
    found = job("trainer.args")
    assert found.model == "gpt2"
    want = {"gpus_per_node": 2, "batch": 4, "sequence": 512, "optimizer": "adafactor", "checkpointing": "full"}
    assert want.items() <= found.words.items()


def test_deepspeed_leaves_to_others_what_is_auto() -> None:
    found = job("deepspeed-z3.json")
    assert found.words["shard"] == "zero3"
    assert not {"batch", "dtype", "clip"} & found.words.keys()


def test_a_file_that_is_named_is_read_too(tmp_path: Path) -> None:
    text = (FILES / "axolotl-fft-8b.yaml").read_text().replace("deepspeed:", "deepspeed: ds.json")
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "ds.json").write_text((FILES / "deepspeed-z3.json").read_text())
    both = read(str(tmp_path / "a.yaml"))
    assert [next(iter(j.read_as.values())) for j in both] == ["axolotl", "deepspeed"]
    assert api.job(tmp_path / "a.yaml").words["shard"] == "zero3"


def test_unknown_keys_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base_model: gpt2\nmicro_batch_size: 1\nsequence_len: 64\nbf17: true\n")
    found = api.job(tmp_path / "a.yaml")
    assert found.unknown == ("bf17",)
    assert any("bf17 changes no byte" in a.what for a in api.train(job=found).all_assumptions())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is no YAML"),
        ("base_model: x\nbase_model: y\n", "twice"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("- 1\n", "no keys"),
        ("base_model: gpt2\n", "describes a training"),
        ("!!python/object/apply:os.system ['true']\n", "is no YAML"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        api.job(tmp_path / "a.yaml")


def test_a_missing_value_in_a_script_is_an_error(tmp_path: Path) -> None:
    text = (FILES / "megatron-8b.sh").read_text().replace("TP=2", "TP=$1")
    (tmp_path / "a.sh").write_text(text)
    with pytest.raises(InputError, match=r"tensor-model-parallel-size: is \$1"):
        api.job(tmp_path / "a.sh")


def test_an_option_with_two_values_is_an_error() -> None:
    with pytest.raises(InputError, match="given twice"):
        options("a.py --seq-length 1\nb.py --seq-length 2", "here")


def test_trl_arguments_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"model_name_or_path": "gpt2", "output_dir": "x", "use_peft": True, "lora_r": 4, "max_length": 128})
    )
    words = api.job(tmp_path / "a.json").words
    assert (words["checkpointing"], words["batch"], words["lora"]["rank"]) == ("full", 8, 4)


def test_qlora(tmp_path: Path) -> None:
    keys = "base_model: llama-3.2-1b\nload_in_4bit: true\nadapter: qlora\nlora_target_linear: true\nlora_r: 8\n"
    (tmp_path / "a.yaml").write_text(f"{keys}bf16: auto\nmicro_batch_size: 1\nsequence_len: 128\n")
    recipe = api.train(job=api.job(tmp_path / "a.yaml")).recipe
    assert (recipe.quantization, recipe.double_quantization, recipe.upcast) == ("nf4", True, "all")


AXOLOTL = "base_model: llama-3-8b\nmicro_batch_size: 2\n"
LLAMA_FACTORY = "model_name_or_path: llama-3-8b\nstage: sft\nbf16: true\n"
TORCHTUNE = "model:\n  _component_: torchtune.models.llama3_1.llama3_1_8b\n"
ACCELERATE = "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 8\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AXOLOTL + "context_parallel_size: 1\ndp_replicate_size: 1", {}),
        (AXOLOTL + "dp_shard_size: 2\ntensor_parallel_size: 4", {"tensor": 4, "gpus_per_node": 8}),
        (AXOLOTL + "dp_replicate_size: 2\ndp_shard_size: 4", {"replicas": 2, "gpus_per_node": 8}),
        (AXOLOTL + "batch_size: 16", {"batch": 2, "accumulation": 8}),
        (AXOLOTL + "lora_r:\nlora_alpha: 16\neval_batch_size: 4", {"batch": 2}),
        (LLAMA_FACTORY + "quantization_bit: 4", {"quantization": "nf4", "double_quantization": True}),
        (LLAMA_FACTORY + "quantization_bit: 8\nquantization_method: bnb", {"quantization": "int8"}),
        (LLAMA_FACTORY + "fsdp: full_shard\nfsdp_config:\n  version: 2", {"checkpointing": "full"}),
        (TORCHTUNE + "loss:\n  _component_: torchtune.modules.loss.LinearCrossEntropyLoss", {"loss": "linear_chunked"}),
        (
            ACCELERATE + "fsdp_config:\n  fsdp_state_dict_type: FULL_STATE_DICT\n"
            "parallelism_config:\n  parallelism_config_dp_shard_size: 4\n  parallelism_config_tp_size: 2\n"
            "  parallelism_config_sp_size: 1\n  parallelism_config_sp_backend: deepspeed\n",
            {"state_dict": "full", "tensor": 2},
        ),
        ('{"zero_optimization": {"stage": 3, "sub_group_size": 1e9}}', {"state_dict": "sharded"}),
        (
            (
                '{"zero_optimization": {"stage": 3, "reduce_bucket_size": 5e8, "max_live_parameters": 0,'
                ' "gather_16bit_weights_on_model_save": true}}'
            ),
            {"zero_reduce_bucket_size": 500_000_000, "zero_max_live_parameters": 1, "state_dict": "full"},
        ),
        (
            "model_name_or_path: gpt2\ndataset_name: imdb\nper_device_eval_batch_size: 4\neval_accumulation_steps: 10",
            {"eval_batch": 4, "eval_accumulation": 10},
        ),
        (
            LLAMA_FACTORY + "optim: galore_adamw_8bit_layerwise\noptim_target_modules: [attn]\noptim_args: rank=64",
            {
                "optimizer": "galore_adamw_8bit",
                "optimizer_in_backward": True,
                "clip": False,
                "projection_rank": 64,
                "projection_targets": ["attn"],
            },
        ),
        (
            LLAMA_FACTORY + "optim: apollo_adamw\noptim_args: rank=1, scale_type=tensor\nuse_unsloth_gc: true",
            {"optimizer": "apollo_mini", "checkpointing": "offloaded"},
        ),
        (
            ACCELERATE.replace("num_", "num_machines: 2\nnum_")
            + "fsdp_config:\n  fsdp_sharding_strategy: HYBRID_SHARD\n"
            "  fsdp_forward_prefetch: true\n  fsdp_backward_prefetch: BACKWARD_POST\n",
            {"replicas": 2, "forward_prefetch": True, "backward_prefetch": "post", "reshard_after_forward": True},
        ),
        (
            (
                '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": true},'
                ' "offload_param": {"device": "cpu"}, "zero_hpz_partition_size": 8},'
                ' "activation_checkpointing": {"cpu_checkpointing": true}}'
            ),
            {"offload_optimizer": True, "offload_parameters": True, "zero_hpz_partition_size": 8},
        ),
        (TORCHTUNE + "fsdp_cpu_offload: true", {"offload_parameters": True}),
    ],
)
def test_what_published_examples_say(tmp_path: Path, text: str, words: dict[str, Any]) -> None:
    """Keys that real files of these programs have, and that were refused, unknown or passed over once."""
    path = tmp_path / ("a.json" if text.startswith("{") else "a.yaml")
    path.write_text(text)
    found = api.job(path)
    assert found.unknown == ()
    assert {name: found.words.get(name) for name in words} == words


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (AXOLOTL + "quantize_moe_experts: true", "quantize_moe_experts"),
        (AXOLOTL + "qat:\n  weight_dtype: int4\n  group_size: 32", "qat"),
        (LLAMA_FACTORY + "pipeline_model_parallel_size: 4", "pipeline_model_parallel_size"),
        (LLAMA_FACTORY + "fp8: true", "fp8"),
        (LLAMA_FACTORY + "quantization_bit: 4\nquantization_method: hqq", "quantization_method"),
        (
            TORCHTUNE + "quantizer:\n  _component_: torchtune.training.quantization.Int8DynActInt4WeightQuantizer",
            "quantizer",
        ),
        (TORCHTUNE + "tasks: [truthfulqa_mc2]", "tasks"),
        (ACCELERATE + "parallelism_config:\n  parallelism_config_sp_size: 2", "parallelism_config_sp_size"),
        (LLAMA_FACTORY + "optim: adamw_anyprecision\noptim_args: use_kahan_summation=True", "use_kahan_summation"),
        ('{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}', "nvme"),
        ('{"zero_optimization": {"stage": 2}, "communication_data_type": "fp32"}', "communication_data_type"),
    ],
)
def test_other_trainings_are_not_weighed_as_plain_ones(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / ("a.json" if text.startswith("{") else "a.yaml")
    path.write_text(text)
    with pytest.raises(NotModelledError, match=key):
        api.job(path)


def test_compiled_code_and_shared_sequences_are_read(tmp_path: Path) -> None:
    titan = tmp_path / "titan.toml"
    titan.write_text(
        '[model]\nname = "llama3"\nflavor = "8B"\n[training]\nlocal_batch_size = 1\nseq_len = 32768\ncompile = true\n'
        '[parallelism]\ncontext_parallel_degree = 2\ncontext_parallel_rotate_method = "alltoall"\n'
        "data_parallel_shard_degree = 4\n"
    )
    words = api.job(titan).words
    assert (words["compile"], words["context"], words["context_method"]) == (True, 2, "alltoall")
    arguments = tmp_path / "trainer.json"
    arguments.write_text(json.dumps({"per_device_train_batch_size": 1, "output_dir": "x", "torch_compile": True}))
    assert api.job(arguments).words["compile"] is True
    accelerate = tmp_path / "accelerate.yaml"
    text = (FILES / "accelerate-fsdp2.yaml").read_text()
    for backend, compiled in (("INDUCTOR", True), ("NO", None)):
        accelerate.write_text(f"{text}\ndynamo_config:\n  dynamo_backend: {backend}\n")
        assert api.job(accelerate).words.get("compile") is compiled
    accelerate.write_text(f"{text}\ndynamo_config:\n  dynamo_backend: EAGER\n")
    with pytest.raises(NotModelledError, match="code compiled by EAGER"):
        api.job(accelerate)
