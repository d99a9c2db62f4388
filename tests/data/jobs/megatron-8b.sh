#!/bin/bash
GPUS_PER_NODE=8
NUM_NODES=${NUM_NODES:-4}
TP=2
SEQ="8192"

DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
)
MODEL_ARGS=(
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --group-query-attention
    --num-query-groups 8
    --seq-length $SEQ
    --max-position-embeddings $SEQ
    --position-embedding-type rope
    --normalization RMSNorm
    --swiglu
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --vocab-size 128256
)
TRAINING_ARGS=(
    --micro-batch-size 1
    --global-batch-size 128
    --lr 0.00015  # of the cosine
    --clip-grad 1.0
    --bf16
    --recompute-granularity selective
    --use-distributed-optimizer
)
PARALLEL_ARGS=(
    --tensor-model-parallel-size $TP
    --sequence-parallel
)
torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py ${MODEL_ARGS[@]} ${TRAINING_ARGS[@]} \
    ${PARALLEL_ARGS[@]} --save "$CHECKPOINT"
